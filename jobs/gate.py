"""Compare two evaluations on the same prompts: is the candidate surely not much worse than the baseline?

python jobs/gate.py --config jobs/configs/demo/gate.toml --set candidate=eval-awq
"""

from supertiny.cli import run_job
from supertiny.evaluate.config import GateConfig


def main(config: GateConfig) -> None:
    from supertiny.evaluate.gate import gate  # scipy and pyarrow only once the config is good

    gate(config)


if __name__ == "__main__":
    raise SystemExit(run_job(GateConfig, main, default="jobs/configs/demo/gate.toml"))
