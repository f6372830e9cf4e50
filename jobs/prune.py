"""Prune a student to a target size: vocabulary, feed-forward channels, layers, or a mix, to a shape that stock kernels take.

python jobs/prune.py --config jobs/configs/demo/prune.toml --set target_parameters_fraction=0.8
python jobs/prune.py --dry-run --set student=/models/Qwen2.5-0.5B/config.json --set target_parameters_fraction=0.82
"""

from supertiny.cli import run_job
from supertiny.compress.config import PruneConfig


def main(config: PruneConfig) -> None:
    from supertiny.compress.prune import prune  # torch only once the config is good
    from supertiny.pipeline.place import run_at_place

    run_at_place(prune, config)


def estimate(config: PruneConfig) -> str:
    from supertiny.compress.dry_run import describe

    return describe(config)


if __name__ == "__main__":
    raise SystemExit(run_job(PruneConfig, main, default="jobs/configs/demo/prune.toml", estimate=estimate))
