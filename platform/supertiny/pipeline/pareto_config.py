"""Settings of the table of models against each other."""

from __future__ import annotations

from pydantic import Field

from supertiny.compress.config import SpeedConfig
from supertiny.llm.config import EngineConfig


class ParetoConfig(SpeedConfig):
    """Quality, cost, bytes and speed of several models, measured in turns on one machine."""

    name: str = "pareto"
    """Name of the table's artifact."""
    models: tuple[str, ...] = ()
    """What was evaluated, by its name: each has an evaluation `eval-<name>` as a student, on the same prompts. All of the run, if none is
    named."""
    chosen: str | None = None
    """The model to mark, where it was chosen elsewhere, as a chain chooses what goes before its gate. None takes the best of all here."""
    why: str | None = None
    """It was, in a few words; for `chosen` alone."""
    split: str = "heldout"
    """The task's prompts that speeds are measured with."""
    num_prompts: int = Field(32, ge=1)
    """So many of them, one at a time."""
    max_tokens: int = Field(96, ge=1)
    """Longest answer."""
    rounds: int = Field(3, ge=1)
    """Measurements of every model, in turns; the medians count."""
    engine: EngineConfig = EngineConfig(max_num_seqs=32)
    """The engine under every model."""
