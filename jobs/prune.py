"""Prune a student to a target size: feed-forward channels or layers, to a shape that stock kernels take.

python jobs/prune.py --config jobs/configs/demo/prune.toml --set target_parameters_fraction=0.8
"""

from supertiny.cli import run_job
from supertiny.compress.config import PruneConfig


def main(config: PruneConfig) -> None:
    from supertiny.compress.prune import prune  # torch only once the config is good

    prune(config)


if __name__ == "__main__":
    raise SystemExit(run_job(PruneConfig, main, default="jobs/configs/demo/prune.toml"))
