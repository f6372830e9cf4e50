"""Which of several evaluated models is the best: one rule, for what goes before the gate and for the Pareto table."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from supertiny.artifacts import Artifact
from supertiny.errors import ConfigError
from supertiny.evaluate.compare import Difference, count_pairs, paired_difference
from supertiny.evaluate.judge import read_predictions
from supertiny.evaluate.schema import EvaluationMetrics

log = logging.getLogger(__name__)


class Chosen(NamedTuple):
    """The best of several."""

    evaluation: Artifact
    why: str
    """In a few words, such as `the most accurate`."""


def best(evaluations: Sequence[Artifact]) -> Chosen:
    """The most accurate model or, of those that are as accurate, the cheapest per right answer; as accurate are those where the interval of
    the difference from the most accurate holds 0. The earlier one where two are equal.

    Raises:
        ConfigError: two evaluations asked different prompts.
    """
    leader = max(evaluations, key=lambda each: EvaluationMetrics.model_validate(each.manifest.metrics).exact_match.value)
    as_good = [each for each in evaluations if each is leader or _lead(leader, each).low <= 0]
    chosen = min(as_good, key=_usd_per_thousand_correct)
    others = [each.manifest.name.removeprefix("eval-") for each in as_good if each is not chosen]
    why = f"as accurate as {' and '.join(others)}, and cheaper per right answer" if others else "the most accurate"
    log.info("%s is the best of %d: %s", chosen.manifest.name, len(evaluations), why)
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


def _usd_per_thousand_correct(evaluation: Artifact) -> float:
    usd = EvaluationMetrics.model_validate(evaluation.manifest.metrics).usd_per_thousand_correct
    return float("inf") if usd is None else usd
