"""What the driver of a training stage tells its workers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from supertiny.train.config import DistillConfig, RlConfig


@dataclass(frozen=True)
class DistillPlan:
    """All that an off-policy distillation worker is told; every path is absolute and the same for all."""

    config: DistillConfig
    student: Path
    rows: Path
    """What `packing.write_rows` wrote."""
    validation: Path
    """What `prompts.write_prompts` wrote; no line where nothing is validated."""
    num_steps: int
    checkpoints: Path
    output: Path
    """Folder that gets the model and the metrics file."""


@dataclass(frozen=True)
class DrawPlan:
    """All that a worker is told which draws the student's own completions; every path is absolute and the same for all."""

    config: RlConfig | DistillConfig
    student: Path
    teacher: Path | None
    """What scores them, in on-policy distillation."""
    prompts: Path
    """What `prompts.write_prompts` wrote, as is the next."""
    validation: Path
    num_steps: int
    checkpoints: Path
    output: Path
    """Folder that gets the model and the metrics file."""
