"""Measurements of what is there now: one of a model that was made again since is not kept."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path

from supertiny.artifacts import MANIFEST, Artifact, read_manifest
from supertiny.config import StageConfig

log = logging.getLogger(__name__)


def set_aside_stale(config: StageConfig, parents: Mapping[str, Artifact]) -> None:
    """Move the stage's published artifact aside if it is of other contents than its parents have now.

    Keys tell settings apart, and the same settings can make other weights: for a stage that trains this is as good, for one that
    measures it is not.
    """
    folder = Path(config.run_root).expanduser().absolute() / config.name
    if not (folder / MANIFEST).exists():
        return
    measured = {role: parent.sha256 for role, parent in read_manifest(folder).parents.items()}
    if measured != {role: parent.as_parent().sha256 for role, parent in parents.items()}:
        log.info("%s: what it measured was made again since; it is measured again", config.name)
        folder.rename(folder.with_name(f".{config.name}.replaced-{time.time_ns()}"))
