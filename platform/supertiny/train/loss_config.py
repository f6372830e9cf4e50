"""Settings of what distillation minimises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from supertiny.config import Config

WHOLE_TEACHER = ("reverse_kl", "jsd")
"""Loss terms that need the teacher's distribution over the whole vocabulary."""
DIVERGENCES = ("forward_kl", *WHOLE_TEACHER)
"""Loss terms that on-policy distillation can minimise."""


class LossWeights(Config):
    """The terms of a distillation's loss: each that is named has this weight, the others are not computed."""

    cross_entropy: float | None = Field(None, gt=0)
    """Cross-entropy on the completion's tokens; alone, it is rejection-sampling fine-tuning."""
    forward_kl: float | None = Field(None, gt=0)
    """Forward KL, teacher to student, over the teacher's top-k tokens and, as one more outcome, all others."""
    tail_penalty: float | None = Field(None, gt=0)
    """Probability of those of the student's k likeliest tokens that the teacher did not keep (STAR: weight 10 beside the forward KL)."""
    reverse_kl: float | None = Field(None, gt=0)
    """Reverse KL, student to teacher, over the whole vocabulary; not from rollouts, which keep the top-k alone."""
    jsd: float | None = Field(None, gt=0)
    """Generalised Jensen-Shannon divergence over the whole vocabulary; not from rollouts, likewise."""

    def weights(self) -> dict[str, float]:
        """The terms that are used."""
        return {name: weight for name, weight in self if weight is not None}

    @model_validator(mode="before")
    @classmethod
    def _known_names(cls, values: Any) -> Any:
        unknown = [str(name) for name in values if name not in cls.model_fields] if isinstance(values, Mapping) else []
        if unknown:
            raise ValueError(f"no such term: {', '.join(unknown)}; the terms are {', '.join(cls.model_fields)}")
        return values

    @model_validator(mode="after")
    def _some_term(self) -> LossWeights:
        if not self.weights():
            raise ValueError("no term has a weight: nothing would be learnt")
        return self
