"""Which of several evaluated models is the best: one rule, for what goes before the gate and for every other Pareto table."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NamedTuple

from supertiny.artifacts import Artifact
from supertiny.errors import ConfigError
from supertiny.evaluate.compare import Difference, count_pairs, paired_difference
from supertiny.evaluate.judge import read_predictions
from supertiny.evaluate.schema import EvaluationMetrics

log = logging.getLogger(__name__)


class Chosen(NamedTuple):
    """The best of several."""

    name: str
    why: str
    """In a few words, such as `the most accurate`."""


def best(evaluations: Mapping[str, Artifact], usd_per_correct: Mapping[str, float | None]) -> Chosen:
    """The most accurate model or, of those that are as accurate, the cheapest per right answer; as accurate are those where the interval of
    the difference from the most accurate holds 0. The earlier one where two are equal.

    Args:
        usd_per_correct: cost of a right answer, or of so many of them, by the same names, all measured alike: one evaluation's is too
            noisy to tell models apart. None where nothing was right.

    Raises:
        ConfigError: two evaluations asked different prompts.
    """
    quality = {name: EvaluationMetrics.model_validate(each.manifest.metrics).exact_match.value for name, each in evaluations.items()}
    leader = max(quality, key=quality.__getitem__)
    as_good = [name for name in evaluations if name == leader or _lead(evaluations[leader], evaluations[name]).low <= 0]
    chosen = min(as_good, key=lambda name: float("inf") if (usd := usd_per_correct[name]) is None else usd)
    others = [name for name in as_good if name != chosen]
    why = f"as accurate as {' and '.join(others)}, and cheaper per right answer" if others else "the most accurate"
    log.info("%s is the best of %d: %s", chosen, len(evaluations), why)
    return Chosen(chosen, why)


def _lead(leader: Artifact, other: Artifact) -> Difference:
    """Exact match of the leader minus the other's, on the same prompts."""
    ours, theirs = ({row.prompt_id: row.exact_match for row in read_predictions(each)} for each in (leader, other))
    names = leader.manifest.name, other.manifest.name
    if ours.keys() != theirs.keys():
        raise ConfigError(f"{names[0]} and {names[1]} asked different prompts; evaluate both on the same")
    gap = paired_difference(count_pairs(list(ours.values()), [theirs[prompt_id] for prompt_id in ours]))
    log.info("%s minus %s: %+.1f points [%+.1f, %+.1f]", *names, 100 * gap.value, 100 * gap.low, 100 * gap.high)
    return gap
