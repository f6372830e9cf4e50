"""Settings of the table that a served model is chosen by."""

from __future__ import annotations

from pydantic import Field

from supertiny.compress.config import SpeedConfig
from supertiny.llm.config import EngineConfig


class ParetoConfig(SpeedConfig):
    """Quality, bytes and speed of several models, measured one after the other on one machine."""

    name: str = "pareto"
    """Name of the table's artifact."""
    models: tuple[str, ...] = Field(("rl", "heal", "awq", "w8a8"), min_length=1)
    """Model artifacts by their names; each has an evaluation `eval-<name>`, on the same prompts."""
    margin: float = Field(0.02, ge=0, lt=1)
    """Loss of exact match, as a fraction, that a faster model may have."""
    split: str = "heldout"
    """The task's prompts that speeds are measured with."""
    num_prompts: int = Field(32, ge=1)
    """So many of them, one at a time."""
    max_tokens: int = Field(96, ge=1)
    """Longest answer."""
    engine: EngineConfig = EngineConfig(max_num_seqs=32)
    """The engine under every model."""
