"""Run the teacher pipeline over a task's prompts and publish what the verifier accepts, with top-k teacher log-probabilities.

python jobs/rollout.py --config jobs/configs/demo/rollout.toml

With `--dry-run` it says how many rollouts, tokens, hours and dollars that will be. Run it again to go on where it was stopped.
"""

from supertiny.cli import run_job
from supertiny.rollout.config import RolloutConfig


def main(config: RolloutConfig) -> None:
    """Make the rollouts."""
    from supertiny.rollout.pipeline import rollout  # Ray and vLLM only once the config is good

    rollout(config)


def estimate(config: RolloutConfig) -> str:
    """What they will take."""
    from supertiny.rollout.dry_run import describe  # loads the task

    return describe(config)


if __name__ == "__main__":
    raise SystemExit(run_job(RolloutConfig, main, estimate=estimate, default="jobs/configs/demo/rollout.toml"))
