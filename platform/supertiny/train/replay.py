"""Earlier rollouts among new ones, so that a student re-distilled on new data keeps what it knew."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence

from supertiny.records import Rollout

log = logging.getLogger(__name__)
REPLAYED = "replayed"
"""Slice of the validation prompts that come from earlier rollouts: what shows forgetting."""


def with_replay(new: Sequence[Rollout], earlier: Mapping[str, Sequence[Rollout]], fraction: float, seed: int) -> list[Rollout]:
    """The new rollouts and behind them earlier ones, drawn so that they are `fraction` of all; all of them where there are not enough.

    Args:
        earlier: by the name of their artifact, which is put before the ids: two artifacts may have a prompt of one id and other tools.
    """
    pool = [rollout for name, rollouts in earlier.items() for rollout in renamed(name, rollouts)]
    wanted = max(1, round(fraction / (1 - fraction) * len(new)))
    if wanted > len(pool):
        log.warning("replay: %d earlier rollouts where %d would be %.0f %% of all; taking them all", len(pool), wanted, 100 * fraction)
    return [*new, *random.Random(seed).sample(pool, min(wanted, len(pool)))]


def to_ask(rollouts: Iterable[Rollout]) -> list[Rollout]:
    """The first rollout of each prompt that has a reference, which its answer can be judged by."""
    first: dict[str, Rollout] = {}
    for rollout in rollouts:
        if rollout.prompt.reference is not None:
            first.setdefault(rollout.prompt.id, rollout)
    return list(first.values())


def renamed(name: str, earlier: Iterable[Rollout]) -> Iterator[Rollout]:
    """Rollouts with their artifact's name before their ids, their prompts in the slice of what is replayed."""
    for rollout in earlier:
        prompt = rollout.prompt.model_copy(update={"id": f"{name}:{rollout.prompt.id}", "slice": REPLAYED})
        yield rollout.model_copy(update={"rollout_id": f"{name}:{rollout.rollout_id}", "prompt": prompt})
