"""Which of two evaluated models goes on."""

from __future__ import annotations

import logging

from supertiny.artifacts import Artifact
from supertiny.errors import ConfigError
from supertiny.evaluate.compare import count_pairs, paired_difference
from supertiny.evaluate.judge import read_predictions
from supertiny.evaluate.schema import EvaluationMetrics

log = logging.getLogger(__name__)


def better(first: Artifact, second: Artifact) -> Artifact:
    """The evaluation of the surely more accurate model; where the interval of their difference holds 0, of the cheaper one.

    Raises:
        ConfigError: the two evaluations asked different prompts.
    """
    ours = {row.prompt_id: row.exact_match for row in read_predictions(first)}
    theirs = {row.prompt_id: row.exact_match for row in read_predictions(second)}
    if ours.keys() != theirs.keys():
        raise ConfigError(f"{first.manifest.name} and {second.manifest.name} asked different prompts; evaluate both on the same")
    gap = paired_difference(count_pairs(list(ours.values()), [theirs[prompt_id] for prompt_id in ours]))
    if gap.low > 0 or gap.high < 0:
        chosen, why = (first if gap.low > 0 else second), "more accurate"
    else:
        chosen, why = min((first, second), key=_usd_per_thousand_correct), "as accurate, and cheaper"
    points = (100 * gap.value, 100 * gap.low, 100 * gap.high)
    log.info("%s goes on: %s (first minus second %+.1f points [%+.1f, %+.1f])", chosen.manifest.name, why, *points)
    return chosen


def _usd_per_thousand_correct(evaluation: Artifact) -> float:
    usd = EvaluationMetrics.model_validate(evaluation.manifest.metrics).usd_per_thousand_correct
    return float("inf") if usd is None else usd
