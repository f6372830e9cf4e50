"""`make serve`: a local Ray that serves the last run's promoted model beside its teacher pipeline, until Ctrl-C."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from supertiny.cli import configure_logging
from supertiny.config import load
from supertiny.errors import ConfigError, SupertinyError
from supertiny.pipeline.config import RUN_CONFIG, PipelineConfig
from supertiny.pipeline.local_cluster import local_cluster, take_sigterm_for_ctrl_c
from supertiny.serving.config import ServeConfig
from supertiny.serving.keys import read_keys
from supertiny.serving.port import check_port

log = logging.getLogger(__name__)

EXAMPLE = """
  curl {url}/v1/chat/completions -H 'content-type: application/json'{key} \\
    -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "turn off the lights in the kitchen"}}]}}'
"""
KEY = " -H 'authorization: Bearer <key>'"


def main() -> int:
    """The exit status of serving what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--run-root", type=Path, required=True, help="absolute folder of the run, which holds the config that it was made with"
    )
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override one setting; repeatable")
    flags = parser.parse_args()
    configure_logging()
    try:
        serve(config_of_run(flags.run_root, flags.set))
    except (SupertinyError, KeyboardInterrupt) as error:
        if isinstance(error, KeyboardInterrupt):
            return 0
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


def config_of_run(run_root: Path, overrides: Sequence[str]) -> PipelineConfig:
    """The settings that a run was made with, wherever its folder lies now; the demo's where nothing has run there yet."""
    made_with = run_root / RUN_CONFIG
    here = [f'run_root="{run_root}"', f'serve.run_root="{run_root}"']
    return load(PipelineConfig, made_with if made_with.exists() else Path("jobs/configs/demo/pipeline.toml"), [*overrides, *here])


def serve(config: PipelineConfig) -> None:
    """Serve until SIGINT or SIGTERM."""
    from supertiny.serving.sources import control_alone_unless_promoted, model_paths

    settings = control_alone_unless_promoted(config.serve)
    names = " and ".join([*model_paths(settings), "auto"])  # a damaged model shows before Ray starts, and so do wrong keys
    if settings.api_keys is not None:
        read_keys(settings.api_keys)
    check_port(config.traffic.port)
    with local_cluster(config.num_cpus) as cluster:
        import ray  # reads the token's settings, which the cluster's start has put into the environment

        from supertiny.serving.run import served

        ray.init(cluster.address, log_to_driver=False)
        take_sigterm_for_ctrl_c()  # Ray has set a handler of its own, which aborts
        with served(settings, port=config.traffic.port) as url:
            print(f"\nserving {names} at {url}, {_who_answers(settings)}, {_who_may_ask(settings)}; Ctrl-C stops it. Try:")
            print(EXAMPLE.format(url=url, model="auto", key=KEY if settings.api_keys else ""), flush=True)
            signal.pause()


def _who_answers(settings: ServeConfig) -> str:
    share = "" if settings.mode == "cascade" else f", {settings.traffic_fraction:.0%} of sessions to the student"
    return f"mode {settings.mode}{share}"


def _who_may_ask(settings: ServeConfig) -> str:
    return f"keys of {settings.api_keys}" if settings.api_keys else "no keys (whoever reaches the port may ask)"


if __name__ == "__main__":
    raise SystemExit(main())
