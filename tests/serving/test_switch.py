"""What `serve deploy` does to a running application when only the router's `user_config` changed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema
from tests.serving.load import BODY, replica_pids, wait_for

from supertiny.serving.port import free_port

pytestmark = [pytest.mark.ray, pytest.mark.slow]
STUDENT = {"scripted": {"answer": "the student"}}
TEACHER = {"scripted": {"answer": "the teacher"}}
FRACTION = {"mode": "split", "traffic_fraction": 0.0}
CASCADE = {"mode": "cascade", "cascade": {"threshold": 0.5}}


@pytest.fixture
def url(local_ray: None) -> Iterator[str]:
    """Where Serve listens, with no application yet."""
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def deploy(checkout: Path, user_config: dict[str, Any]) -> None:
    """What `serve deploy` sends to the cluster for this file."""
    path = os.pathsep.join([str(checkout), str(checkout / "platform")])
    application = {
        **{"name": "supertiny", "route_prefix": "/", "import_path": "serve.app:build"},
        "runtime_env": {"env_vars": {"PYTHONPATH": path}},
        "args": {"student_arm": STUDENT, "teacher_arm": TEACHER},
        "deployments": [{"name": "router", "user_config": user_config}],
    }
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate({"applications": [application]}), _blocking=True)


def assignment(url: str) -> str | None:
    """Who chose the arm for a request to `auto`."""
    return httpx.post(f"{url}/v1/chat/completions", json={**BODY, "model": "auto"}, timeout=60).headers.get("x-supertiny-assignment")


def test_the_mode_changes_and_no_replica_does(url: str, checkout: Path) -> None:
    deploy(checkout, FRACTION)
    assert assignment(url) == "split"
    before = {name: replica_pids(name) for name in ("router", "student-engine", "teacher-engine")}
    deploy(checkout, CASCADE)
    wait_for("the cascade", lambda: assignment(url) == "cascade")
    deploy(checkout, {"mode": "spilt"})  # nobody knows it, so the cascade stays
    deploy(checkout, {**FRACTION, "mode": "shadow"})
    wait_for("the shadow", lambda: assignment(url) == "shadow")
    assert {name: replica_pids(name) for name in before} == before
