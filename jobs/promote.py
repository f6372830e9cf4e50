"""Move an alias to the model whose gate passed; exit status 1, and the alias stays, where it did not.

python jobs/promote.py --set gate=gate --set alias=student@production
"""

from supertiny.cli import run_job
from supertiny.evaluate.config import PromoteConfig


def main(config: PromoteConfig) -> None:
    from supertiny.evaluate.promote import promote  # the rest only once the config is good

    promote(config)


if __name__ == "__main__":
    raise SystemExit(run_job(PromoteConfig, main))
