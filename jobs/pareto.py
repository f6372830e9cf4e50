"""Measure several models of a run in vLLM and say which to serve: quality, bytes, time a token, tokens a second.

python jobs/pareto.py --config jobs/configs/demo/pareto.toml --set run_root=/runs/demo
"""

from supertiny.cli import run_job
from supertiny.pipeline.pareto_config import ParetoConfig


def main(config: ParetoConfig) -> None:
    """Make the table."""
    from supertiny.pipeline.pareto import pareto  # vLLM only once the config is good
    from supertiny.pipeline.place import run_at_place

    print((run_at_place(pareto, config).path / "table.md").read_text())


if __name__ == "__main__":
    raise SystemExit(run_job(ParetoConfig, main, default="jobs/configs/demo/pareto.toml"))
