"""Heal a cut model round by round, until its quality is surely near the uncut one's or the budget is spent.

python jobs/recover.py --set run_root=/runs/demo --set heal.epochs=1 --set max_rounds=3 --set margin=0.02
"""

from supertiny.cli import run_job
from supertiny.pipeline.recover_config import RecoverConfig


def main(config: RecoverConfig) -> None:
    """Heal, evaluate and compare until it is enough."""
    from supertiny.pipeline.recover import recover  # Ray and torch only once the config is good

    recover(config)


if __name__ == "__main__":
    raise SystemExit(run_job(RecoverConfig, main, default="jobs/configs/demo/recover.toml"))
