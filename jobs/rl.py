"""Raise the verifier's reward of a student's own completions (GRPO), starting from a distilled student.

python jobs/rl.py
python jobs/rl.py --config jobs/configs/demo/rl.toml --set run_root=/shared/runs/demo

Run it again to resume from the last checkpoint.
"""

from supertiny.cli import run_job
from supertiny.train.config import RlConfig


def main(config: RlConfig) -> None:
    from supertiny.train.rl import rl  # torch, trl and ray only once the config is good

    rl(config)


if __name__ == "__main__":
    raise SystemExit(run_job(RlConfig, main, default="jobs/configs/demo/rl.toml"))
