"""The gate: is the candidate surely not much worse than the baseline, on the same prompts?"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from supertiny.artifacts import Artifact, make, open_artifact
from supertiny.errors import ConfigError
from supertiny.evaluate.compare import Pairs, count_pairs, non_inferior, paired_difference, wilson
from supertiny.evaluate.config import GateConfig
from supertiny.evaluate.judge import Judged, read_predictions
from supertiny.evaluate.schema import GateMetrics, Side
from supertiny.fresh import set_aside_stale

DISAGREEMENTS = "disagreements.parquet"
log = logging.getLogger(__name__)

Pair = tuple[Judged, Judged]
"""The candidate's and the baseline's row of one prompt."""


def gate(config: GateConfig) -> Artifact:
    """The gate's verdict as `GateMetrics` in the manifest, and `disagreements.parquet`: the prompts that only one side got right.

    Raises:
        ConfigError: the two evaluations asked different prompts, or too few.
    """
    candidate = open_artifact(config.candidate, config.run_root, "evaluation")
    baseline = open_artifact(config.baseline, config.run_root, "evaluation")
    set_aside_stale(config, {"candidate": candidate, "baseline": baseline})

    def build(folder: Path) -> dict[str, Any]:
        rows = pair(read_predictions(candidate), read_predictions(baseline), config)
        write_disagreements(folder / DISAGREEMENTS, rows)
        metrics = compare(candidate, baseline, rows, config)
        log.info("%s: %s", config.name, describe(metrics))
        return metrics.model_dump(mode="json")

    return make(config, "gate", {"candidate": candidate, "baseline": baseline}, build)


def pair(candidate: Sequence[Judged], baseline: Sequence[Judged], config: GateConfig) -> list[Pair]:
    """Rows of the same prompt, in the candidate's order.

    Raises:
        ConfigError: the prompts differ, or are fewer than `min_prompts`.
    """
    by_id = {row.prompt_id: row for row in baseline}
    alone = {row.prompt_id for row in candidate} ^ by_id.keys()
    if alone:
        raise ConfigError(
            f"{config.candidate} and {config.baseline} asked different prompts: {len(alone)} are in one alone, such as {min(alone)}; "
            "evaluate both with the same task, split and num_prompts"
        )
    if len(by_id) < config.min_prompts:
        raise ConfigError(f"{len(by_id)} paired prompts; a gate needs {config.min_prompts} (min_prompts): evaluate on more")
    return [(row, by_id[row.prompt_id]) for row in candidate]


def compare(candidate: Artifact, baseline: Artifact, rows: Sequence[Pair], config: GateConfig) -> GateMetrics:
    """Candidate minus baseline over paired rows."""
    pairs = _count(rows)
    difference = paired_difference(pairs, config.confidence)
    slices = {name: [row for row in rows if row[0].slice == name] for name in sorted({row[0].slice for row in rows})}
    return GateMetrics(
        candidate=_side(candidate, [row for row, _ in rows], config.confidence),
        baseline=_side(baseline, [row for _, row in rows], config.confidence),
        margin=config.margin,
        confidence=config.confidence,
        difference=difference,
        verdict=non_inferior(difference, config.margin),
        slices={name: paired_difference(_count(part), config.confidence) for name, part in slices.items()},
        candidate_only=pairs.first_only,
        baseline_only=pairs.second_only,
    )


def describe(metrics: GateMetrics) -> str:
    """One line for the log."""
    gap = metrics.difference
    return (
        f"{metrics.verdict.upper()}: {metrics.candidate.evaluation} minus {metrics.baseline.evaluation} is {100 * gap.value:+.1f} points "
        f"[{100 * gap.low:+.1f}, {100 * gap.high:+.1f}], allowed {-100 * metrics.margin:+.1f}"
    )


def write_disagreements(path: Path, rows: Sequence[Pair]) -> None:
    """A row for each prompt that only one side got right."""
    table = [
        {
            "prompt_id": ours.prompt_id,
            "slice": ours.slice,
            "right": "candidate" if ours.exact_match else "baseline",
            "reason": ours.reason or theirs.reason,
            "reference": ours.reference,
            "candidate": ours.text,
            "baseline": theirs.text,
        }
        for ours, theirs in rows
        if ours.exact_match != theirs.exact_match
    ]
    columns = ("prompt_id", "slice", "right", "reason", "reference", "candidate", "baseline")
    pq.write_table(pa.Table.from_pylist(table, pa.schema([(name, pa.string()) for name in columns])), path)


def _count(rows: Sequence[Pair]) -> Pairs:
    return count_pairs([ours.exact_match for ours, _ in rows], [theirs.exact_match for _, theirs in rows])


def _side(evaluation: Artifact, rows: Sequence[Judged], confidence: float) -> Side:
    return Side(
        evaluation=evaluation.manifest.name,
        model=evaluation.manifest.parents["model"],
        exact_match=wilson(sum(row.exact_match for row in rows), len(rows), confidence),
    )
