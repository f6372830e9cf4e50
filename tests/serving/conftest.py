"""The real application, deployed once for a module: both engines, the teacher pipeline and the router, on the session's Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from supertiny.artifacts import alias_path, open_artifact, write_atomically
from supertiny.serving.config import ServeConfig
from supertiny.serving.port import free_port

TEACHER = "package://supertiny.tasks.assistant/models/teacher"
STUDENT = "package://supertiny.tasks.assistant/models/base"


@pytest.fixture(scope="session")
def serve_config(tmp_path_factory: pytest.TempPathFactory) -> ServeConfig:
    """The embedded task with its shipped models, the base standing in for a promoted student."""
    root = str(tmp_path_factory.mktemp("served"))
    parent = open_artifact(STUDENT, root, "model").as_parent()
    write_atomically(alias_path("student@production", root), parent.model_dump_json())
    return ServeConfig(run_root=root, teacher=TEACHER)


@pytest.fixture(scope="module")  # the faults' own application comes after it: a Ray serves one at a time
def application(local_ray: None, serve_config: ServeConfig) -> Iterator[str]:
    """URL of the running application."""
    from supertiny.serving.run import served

    with served(serve_config, port=free_port()) as url:
        yield url


@pytest.fixture(scope="session")
def student_path(serve_config: ServeConfig) -> Path:
    """Folder of the model that the student arm serves."""
    return open_artifact(STUDENT, serve_config.run_root, "model").path
