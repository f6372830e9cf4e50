"""What the driver of a training stage tells its workers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from supertiny.train.config import DistillConfig


@dataclass(frozen=True)
class DistillPlan:
    """All that a distillation worker is told; every path is absolute and the same for all."""

    config: DistillConfig
    student: Path
    rows: Path
    """What `packing.write_rows` wrote."""
    num_steps: int
    checkpoints: Path
    output: Path
    """Folder that gets the model and the metrics file."""
