"""How the learning rate goes over a run."""

from __future__ import annotations

import math

from supertiny.train.config import TrainConfig


def learning_rate(step: int, num_steps: int, config: TrainConfig) -> float:
    """The rate of a step (counted from 1): a straight rise, then a cosine down to the final share of the peak."""
    warmup_steps = math.ceil(config.warmup_fraction * num_steps)
    if step <= warmup_steps:
        return config.learning_rate * step / warmup_steps
    done = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    lowest = config.final_learning_rate_fraction
    return config.learning_rate * (lowest + (1 - lowest) * (1 + math.cos(math.pi * done)) / 2)
