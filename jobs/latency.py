"""Measure what layers, feed-forward channels and vocabulary rows of a student cost in vLLM, so that pruning can aim at seconds a token.

python jobs/latency.py --set run_root=/runs/demo --set student=rl
python jobs/prune.py --set run_root=/runs/demo --set target_seconds_per_token=0.004 --dry-run
"""

from supertiny.cli import run_job
from supertiny.compress.config import LatencyConfig


def main(config: LatencyConfig) -> None:
    from supertiny.compress.measure_latency import measure_latency  # vLLM only once the config is good
    from supertiny.pipeline.place import run_at_place

    run_at_place(measure_latency, config)


if __name__ == "__main__":
    raise SystemExit(run_job(LatencyConfig, main, default="jobs/configs/demo/latency.toml"))
