"""Evaluate one model: exact match with its interval, by slice, tokens, latency and cost.

python jobs/eval.py --config jobs/configs/demo/eval.toml --set model=distill
python jobs/eval.py --set model=package://supertiny.tasks.assistant/models/teacher --set system=teacher
"""

from supertiny.cli import run_job
from supertiny.evaluate.config import EvaluateConfig


def main(config: EvaluateConfig) -> None:
    from supertiny.evaluate.suites import evaluate  # ray only once the config is good, vLLM only in the actor

    evaluate(config)


if __name__ == "__main__":
    raise SystemExit(run_job(EvaluateConfig, main, default="jobs/configs/demo/eval.toml"))
