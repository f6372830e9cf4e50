"""`make demo`: a local Ray, the main job submitted to it, the result served, sent traffic, and reported.

Running it again resumes. Exit status 0 if the gate passed, 1 if it did not or something failed, 2 if the config is wrong.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

from supertiny.artifacts import MANIFEST, read_manifest
from supertiny.cli import configure_logging, exit_status
from supertiny.config import load
from supertiny.cost import machine_price
from supertiny.evaluate.schema import GateMetrics
from supertiny.pipeline.config import PipelineConfig
from supertiny.pipeline.local_cluster import LocalCluster, local_cluster, submit_job, take_sigterm_for_ctrl_c
from supertiny.pipeline.report import show, write_run_report
from supertiny.serving.port import check_port
from supertiny.serving.traffic import TrafficReport, measure
from supertiny.tasks.base import load_task

log = logging.getLogger(__name__)


def main() -> int:
    """The exit status of the demo that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("jobs/configs/demo/pipeline.toml"), help="config of jobs/pipeline.py")
    parser.add_argument("--run-root", type=Path, required=True, help="absolute folder of the run's artifacts and report")
    parser.add_argument("--git-revision", default="unknown", help="revision of the checkout, for the manifests")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override one setting; repeatable")
    flags = parser.parse_args()
    configure_logging()
    overrides = [*flags.set, f'run_root="{flags.run_root}"', f'git_revision="{flags.git_revision}"']
    try:
        return exit_status(lambda: demo(flags.config, overrides, Path.cwd()))
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


def demo(config_path: Path, overrides: list[str], checkout: Path) -> int:
    """Run the pipeline as a submitted job, then serve and measure what it promoted; 0 if the gate passed."""
    started = time.monotonic()
    config = load(PipelineConfig, config_path, overrides)
    check_port(config.traffic.port)
    with local_cluster(config.num_cpus) as cluster:
        settings = [part for override in overrides for part in ("--set", override)]
        status = submit_job(cluster, checkout, ["python", "jobs/pipeline.py", "--config", str(config_path), *settings])
        if not decided(config, status):
            print("error: the job failed before its gate decided; its log is above", file=sys.stderr)
            return status or 1
        served_at = time.monotonic()
        traffic = measure_served(config, cluster, promoted=status == 0)
    show(write_run_report(config, traffic, time.monotonic() - served_at), Path(config.run_root))
    log.info("demo finished in %.0f s", time.monotonic() - started)
    return status


def decided(config: PipelineConfig, status: int) -> bool:
    """Whether the job came to its gate: it promoted (status 0), or the gate there says why not; a passed one is an earlier run's."""
    folder = Path(config.run_root) / config.gate.name
    if not (folder / MANIFEST).exists():
        return False
    return status == 0 or GateMetrics.model_validate(read_manifest(folder).metrics).verdict != "pass"


def measure_served(config: PipelineConfig, cluster: LocalCluster, *, promoted: bool) -> TrafficReport:
    """The traffic of both arms over HTTP; where nothing was promoted, everything goes to the control."""
    import ray  # reads the token's settings, which the cluster's start has put into the environment

    from supertiny.serving.run import served

    settings = (config.serve if promoted else config.serve.control_alone()).model_copy(update={"api_keys": None})  # our own client alone
    task = load_task(config.task)
    price = machine_price(config.evaluate.machine, config.evaluate.prices)
    ray.init(cluster.address, log_to_driver=False)
    take_sigterm_for_ctrl_c()  # Ray has set a handler of its own, which aborts
    try:
        with served(settings, port=config.traffic.port) as url:
            prompts = task.prompts(config.evaluate.split)
            return measure(url, prompts, task, price, requests=config.traffic.requests, concurrency=config.traffic.concurrency)
    finally:
        ray.shutdown()


if __name__ == "__main__":
    raise SystemExit(main())
