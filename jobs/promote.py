"""Move an alias to the model whose gate passed; exit status 1, and the alias stays, where it did not.

python jobs/promote.py --set gate=gate --set alias=student@production
python jobs/promote.py --set release=w8a8-1f2e3d4c        roll back to an earlier one of aliases/student@production.history.jsonl
"""

from supertiny.cli import run_job
from supertiny.evaluate.config import PromoteConfig


def main(config: PromoteConfig) -> None:
    from supertiny.evaluate.promote import promote  # the rest only once the config is good

    promote(config)


if __name__ == "__main__":
    raise SystemExit(run_job(PromoteConfig, main))
