"""Which loss terms a distillation computes, and whether its rows have what they take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from supertiny.errors import ConfigError
from supertiny.train.config import DistillConfig
from supertiny.train.losses import TEACHER_TERMS
from supertiny.train.packing import PackedRows

DIVERGENT_FRACTION = "divergent_fraction"
"""Share of the teacher's tokens that the divergence mask lets through."""
ENTROPY = "entropy"
"""Of the student's distribution over the whole vocabulary, nats a completion token."""


@dataclass(frozen=True)
class Objective:
    """Terms by name, and the tokens that they count at."""

    terms: tuple[str, ...]
    """Keys of `losses.TERMS`."""
    min_divergence: float | None = None
    """Tokens whose forward KL is below this, in nats, count for no term; those without a teacher always count."""
    entropy: bool = False
    """Whether the student's entropy is summed up too, at every token; it takes a further pass over the logits."""

    @property
    def sums(self) -> tuple[str, ...]:
        """What is summed up over tokens, each by the name of its mean: the terms, the tokens that pass a mask, the entropy."""
        masked = () if self.min_divergence is None else (DIVERGENT_FRACTION,)
        return (*self.terms, *masked, *((ENTROPY,) if self.entropy else ()))


def objective_of(config: DistillConfig) -> Objective:
    """What a config asks for, and the entropy to watch."""
    return Objective(tuple(config.losses.weights()), config.min_divergence, entropy=True)


def takers(config: DistillConfig) -> list[str]:
    """The settings that are made of the teacher's top-k."""
    terms = [f"losses.{name}" for name in config.losses.weights() if name in TEACHER_TERMS]
    return [*terms, *(["min_divergence"] if config.min_divergence is not None else [])]


def check_teacher(config: DistillConfig, rows: PackedRows, rollouts: Path) -> None:
    """Refuse terms that would be 0 in every step.

    Raises:
        ConfigError: no row has the teacher's top-k, and a term or the mask is made of it.
    """
    taking = takers(config)
    if taking and not len(rows.top_k_ids_MK):
        raise ConfigError(
            f"{' and '.join(taking)} without effect: none of the {len(rows.rollout_ids)} rows of {rollouts} has the teacher's top-k; "
            "make the rollouts with a teacher that gives log-probabilities, or train on [losses] cross_entropy alone"
        )
