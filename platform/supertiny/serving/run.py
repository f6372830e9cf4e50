"""Deploys the application on the running Ray, waits until it answers, and takes down only what it put up."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import ray
from ray import serve
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from supertiny.errors import ConfigError, NoProgress, PlanTooBig
from supertiny.serving.app import build_app
from supertiny.serving.config import ServeConfig
from supertiny.serving.port import check_port

APPLICATION = "supertiny"
_POLL_SECONDS = 0.5
log = logging.getLogger(__name__)


@contextmanager
def served(config: ServeConfig, *, port: int = 8000, no_progress_seconds: float = 300.0) -> Iterator[str]:
    """The URL of the running application, for as long as the block lasts; `ray.init` was called before.

    Raises:
        ConfigError: the port is taken, or this Ray serves already.
        PlanTooBig: the cluster has fewer logical CPUs or GPUs than the arms need.
        MissingInput, CorruptArtifact: a model is not there, or not what was promoted.
        NoProgress: a deployment failed, or nothing changed for `no_progress_seconds`; the message says where.
    """
    check_port(port)
    _check_cluster(config)
    app = build_app(config)
    started = time.monotonic()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        target = serve.RunTarget(app, name=APPLICATION, logging_config={"enable_access_log": False})
        serve.run_many([target], wait_for_applications_running=False)
        _wait_until_running(no_progress_seconds)
        url = f"http://127.0.0.1:{port}"
        _check_health(url)
        log.info("serving at %s after %.0f s", url, time.monotonic() - started)
        yield url
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]


def _check_cluster(config: ServeConfig) -> None:
    has = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for kind, needed, called in (("CPU", config.num_cpus, "logical CPUs"), ("GPU", config.num_gpus, "GPUs")):
        if has.get(kind, 0.0) < needed:
            there = f"the cluster has {has.get(kind, 0.0):g}"
            raise PlanTooBig(f"serving needs {needed:g} {called} for its engines, {there}; start Ray with more")
    if serve.status().proxies:
        raise ConfigError("Ray Serve runs on this cluster already; end it with `serve shutdown`, or deploy serve/ab.yaml to it")


def _wait_until_running(no_progress_seconds: float) -> None:
    seen, changed = "", time.monotonic()
    while True:
        overview = serve.status().applications[APPLICATION]
        if overview.status == ApplicationStatus.RUNNING:
            return
        state = _describe(overview)
        if overview.status == ApplicationStatus.DEPLOY_FAILED:
            raise NoProgress(f"the application could not be deployed: {state[-2000:]}")
        if state != seen:
            seen, changed = state, time.monotonic()
        if time.monotonic() - changed > no_progress_seconds:
            raise NoProgress(f"nothing changed for {no_progress_seconds:.0f} s while the application started: {state}")
        time.sleep(_POLL_SECONDS)


def _describe(overview: ApplicationStatusOverview) -> str:
    parts = [f"{name} {state.status.value} {state.message}".strip() for name, state in overview.deployments.items()]
    return "; ".join([f"{overview.status.value} {overview.message}".strip(), *parts])


def _check_health(url: str) -> None:
    answer = httpx.get(f"{url}/health", timeout=60)
    if answer.status_code != 200:
        raise NoProgress(f"the application runs but an arm draws no token: {answer.text[:200]}")
