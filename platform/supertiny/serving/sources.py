"""Which model folders are served."""

from __future__ import annotations

import logging
from pathlib import Path

from supertiny.artifacts import Artifact, alias_path, open_artifact, read_alias
from supertiny.errors import ConfigError
from supertiny.llm.folders import lora_rank
from supertiny.serving.config import ServeConfig

log = logging.getLogger(__name__)


def control_alone_unless_promoted(config: ServeConfig) -> ServeConfig:
    """The config; without student where nothing was promoted under its alias, so that all of `auto` is the control's."""
    if config.student is None or "@" not in config.student or alias_path(config.student, config.run_root).exists():
        return config
    log.warning("nothing was promoted as %s in %s: the teacher pipeline answers alone", config.student, config.run_root)
    return config.control_alone()


def model_paths(config: ServeConfig) -> dict[str, Path]:
    """Folder of each model to serve, every file checked against its manifest; none for a scripted engine, or a teacher behind an endpoint.

    Raises:
        MissingInput: nothing was promoted under the student's alias, or a model or an adapter is not there.
        CorruptArtifact: a model is not what its manifest, or its promotion, says.
        ConfigError: vLLM runs no such adapter, or the alias names another release than `student_release`.
    """
    for adapter in config.student_arm.adapters.values():
        lora_rank(Path(adapter))
    paths = {}
    if config.teacher_endpoint is None and config.teacher_arm.scripted is None:
        paths["teacher"] = open_artifact(config.teacher, config.run_root, "model").path
    if config.student is not None and config.student_arm.scripted is None:
        paths["student"] = _student(config.student, config).path
    return paths


def _student(name: str, config: ServeConfig) -> Artifact:
    if not config.student_is_promoted:
        return open_artifact(name, config.run_root, "model")
    promoted = read_alias(name, config.run_root)
    release = promoted.path.name
    if config.student_release not in (None, release):
        raise ConfigError(f"student_release {config.student_release}, and {name} names {release}: promote the former, or write the latter")
    return promoted
