"""Take in a model from elsewhere: a Hugging Face folder becomes an artifact that every stage can start from.

python jobs/adopt.py --set name=teacher --set source=/models/Qwen2.5-7B-Instruct --set run_root=/shared/runs/mine
"""

from supertiny.cli import run_job
from supertiny.train.adopt_config import AdoptConfig


def main(config: AdoptConfig) -> None:
    from supertiny.train.adopt import adopt  # transformers only once the config is good

    adopt(config)


if __name__ == "__main__":
    raise SystemExit(run_job(AdoptConfig, main, default="jobs/configs/demo/adopt.toml"))
