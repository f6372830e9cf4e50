"""Measurements of what is there now: one of a model that was made again since is not kept."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path

from supertiny.artifacts import MANIFEST, Artifact, Parent, find_parent, read_manifest, stage_key
from supertiny.config import StageConfig

log = logging.getLogger(__name__)

CHOSEN = "chosen_model"
"""Metric of a measurement whose result is an artifact: that artifact, as a `Parent`."""


def set_aside_stale(config: StageConfig, parents: Mapping[str, Artifact], *, asked_otherwise: bool = False) -> None:
    """Move the stage's published artifact aside if its parents have other contents now, or what it chose is not there as it was.

    Keys tell settings apart, and the same settings can make other weights: for a stage that trains this is as good, for one that
    measures it is not. What was asked with other settings, or of other artifacts, stays until there is another one to take its place.

    Args:
        asked_otherwise: that, too, for what is of no use beside other parents.
    """
    folder = Path(config.run_root).expanduser().absolute() / config.name
    if not (folder / MANIFEST).exists():
        return
    manifest = read_manifest(folder)
    if not asked_otherwise and manifest.key != stage_key(config, manifest.kind, parents):
        return
    measured = {role: parent.sha256 for role, parent in manifest.parents.items()}
    chosen = manifest.metrics.get(CHOSEN)
    gone = chosen is not None and find_parent(Parent.model_validate(chosen), config.run_root) is None
    if gone or measured != {role: parent.as_parent().sha256 for role, parent in parents.items()}:
        log.info("%s: what it measured, or chose, was made again or removed since; it is measured again", config.name)
        folder.rename(folder.with_name(f".{config.name}.replaced-{time.time_ns()}"))
