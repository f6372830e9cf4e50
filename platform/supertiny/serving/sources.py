"""Which model folders are served."""

from __future__ import annotations

from pathlib import Path

from supertiny.artifacts import open_artifact, read_alias
from supertiny.serving.config import ServeConfig


def model_paths(config: ServeConfig) -> dict[str, Path]:
    """Folder of each model to serve, every file checked against its manifest.

    Raises:
        MissingInput: nothing was promoted under the student's alias, or a model is not there.
        CorruptArtifact: a model is not what its manifest, or its promotion, says.
    """
    paths = {"teacher": open_artifact(config.teacher, config.run_root, "model").path}
    if config.student is not None:
        promoted = "@" in config.student
        student = read_alias(config.student, config.run_root) if promoted else open_artifact(config.student, config.run_root, "model")
        paths["student"] = student.path
    return paths
