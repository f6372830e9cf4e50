"""Settings of the table of models against each other."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from supertiny.compress.config import SpeedConfig
from supertiny.llm.config import EngineConfig

BATCHES = (1, 8, 32)
"""Requests in flight that speeds are measured with; cost is of the last."""


class ParetoConfig(SpeedConfig):
    """Quality, cost, bytes and speed of several models, measured in turns on one machine, and which of them to serve."""

    name: str = "pareto-all"
    """Name of the table's artifact; `pareto` is a chain's."""
    evaluations: tuple[str, ...] = ()
    """Evaluations of students, all on the same prompts: a row each. All of the run, if none is named."""
    candidates: tuple[str, ...] = ()
    """Those of `evaluations` whose models may be chosen; all, if none is named."""
    candidates_are: str | None = None
    """What is said of the candidates before the reason of the choice, such as `the 2 of 3 candidates that would pass the gate`; of one
    alone it is the reason."""
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

    @model_validator(mode="after")
    def _measures_what_it_says(self) -> Self:
        if self.engine.max_num_seqs < max(BATCHES):
            raise ValueError(
                f"engine.max_num_seqs {self.engine.max_num_seqs} is under {max(BATCHES)}: speeds are of so many requests in flight"
            )
        if self.max_tokens >= self.engine.max_model_len:
            raise ValueError(
                f"max_tokens {self.max_tokens} leaves no room for a prompt within engine.max_model_len {self.engine.max_model_len}"
            )
        if others := [each for each in self.candidates if each not in self.evaluations]:
            raise ValueError(f"candidates: {', '.join(others)} is none of `evaluations`, which are to be named beside them")
        if self.candidates_are is not None and not self.candidates:
            raise ValueError("candidates_are: without effect where no candidates are named")
        return self
