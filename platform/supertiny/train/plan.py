"""What the driver of a training stage tells its workers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from supertiny.records import Prompt, Record
from supertiny.train.config import DistillConfig, RlConfig


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


@dataclass(frozen=True)
class RlPlan:
    """All that a reinforcement learning worker is told; every path is absolute and the same for all."""

    config: RlConfig
    student: Path
    prompts: Path
    """JSON lines of `RlPrompt`."""
    checkpoints: Path
    output: Path
    """Folder that gets the model and the metrics file."""


class RlPrompt(Record):
    """A prompt to draw completions for."""

    prompt: Prompt
    text: str
    """The conversation as the chat template renders it."""
