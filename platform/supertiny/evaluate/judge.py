"""From a system's answers to a row a prompt, and from rows to metrics. Pure."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, quantiles

import pyarrow as pa
import pyarrow.parquet as pq

from supertiny.artifacts import Artifact
from supertiny.errors import ConfigError, CorruptArtifact, MalformedCall
from supertiny.evaluate.compare import Interval, wilson
from supertiny.evaluate.measure import Answer
from supertiny.evaluate.schema import Latency, Tokens
from supertiny.records import Call, Prompt, Record, Verdict
from supertiny.tasks.base import Task
from supertiny.tasks.calls import grade, parse, render

PREDICTIONS = "predictions.parquet"


class Judged(Record):
    """One prompt's answer and what it was worth: a row of `predictions.parquet`."""

    prompt_id: str
    slice: str
    exact_match: bool
    score: float
    reason: str
    call_name_right: bool
    argument_f1: float | None
    """None where the reference has no call."""
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    model_calls: int
    text: str
    reference: str
    """The right calls in the student's format; empty where no call is right."""


_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("slice", pa.string()),
        ("exact_match", pa.bool_()),
        ("score", pa.float64()),
        ("reason", pa.string()),
        ("call_name_right", pa.bool_()),
        ("argument_f1", pa.float64()),
        ("prompt_tokens", pa.int64()),
        ("cached_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("model_calls", pa.int64()),
        ("text", pa.string()),
        ("reference", pa.string()),
    ]
)


def choose(prompts: Sequence[Prompt], num_prompts: int, split: str) -> list[Prompt]:
    """`num_prompts` of a split, drawn and ordered by the hash of their id, so that every evaluation asks the same ones.

    Raises:
        ConfigError: the split has fewer, has an id twice, or one of the chosen has no reference.
    """
    if len(prompts) < num_prompts:
        raise ConfigError(f"num_prompts {num_prompts}: the split {split} has only {len(prompts)} prompts")
    if len({prompt.id for prompt in prompts}) < len(prompts):
        twice = next(name for name, count in Counter(prompt.id for prompt in prompts).items() if count > 1)
        raise ConfigError(f"the split {split} has the prompt id {twice} more than once; ids pair the systems, so they are unique")
    chosen = sorted(prompts, key=lambda prompt: hashlib.sha256(prompt.id.encode()).digest())[:num_prompts]
    unknown = sum(prompt.reference is None for prompt in chosen)
    if unknown:
        raise ConfigError(f"{unknown} of {num_prompts} prompts of the split {split} have no reference; nothing can be right or wrong there")
    return chosen


def judge(task: Task, prompt: Prompt, answer: Answer) -> Judged:
    """The row of one answer; a prompt that the engine refused is an answer that is not right."""
    reference = prompt.reference or []
    if answer.refusal:
        verdict = Verdict(accepted=False, score=-1, reason="prompt_refused", evidence=answer.refusal)
    else:
        verdict = task.verify(prompt, answer.text)
    calls = _calls(answer)
    same_names = calls is not None and sorted(call.name for call in calls) == sorted(call.name for call in reference)
    return Judged(
        prompt_id=prompt.id,
        slice=prompt.slice,
        exact_match=verdict.accepted,
        score=verdict.score,
        reason=verdict.reason,
        call_name_right=same_names,
        argument_f1=grade(calls or [], reference) if reference else None,
        prompt_tokens=answer.usage.prompt_tokens,
        cached_tokens=answer.usage.cached_tokens,
        completion_tokens=answer.usage.completion_tokens,
        model_calls=answer.usage.calls,
        text=answer.text,
        reference=render(reference),
    )


def _calls(answer: Answer) -> list[Call] | None:
    """The calls of an answer, None where it is refused or malformed: not even no call."""
    if answer.refusal:
        return None
    try:
        return parse(answer.text)
    except MalformedCall:
        return None


def intervals(rows: Sequence[Judged]) -> tuple[Interval, dict[str, Interval]]:
    """Exact match of all rows, and by slice in alphabetical order."""
    by_slice = {name: [row.exact_match for row in rows if row.slice == name] for name in sorted({row.slice for row in rows})}
    return wilson(sum(row.exact_match for row in rows), len(rows)), {name: wilson(sum(got), len(got)) for name, got in by_slice.items()}


def mean_argument_f1(rows: Sequence[Judged]) -> float | None:
    """Mean over the rows that have one."""
    values = [row.argument_f1 for row in rows if row.argument_f1 is not None]
    return fmean(values) if values else None


def tokens(rows: Sequence[Judged]) -> Tokens:
    """Totals."""
    return Tokens(
        prompt=sum(row.prompt_tokens for row in rows),
        cached=sum(row.cached_tokens for row in rows),
        completion=sum(row.completion_tokens for row in rows),
        model_calls=sum(row.model_calls for row in rows),
    )


def latency(seconds: Sequence[float]) -> Latency:
    """Median and 95th percentile, interpolated between the two nearest of the values."""
    cuts = quantiles(seconds, n=20, method="inclusive")
    return Latency(p50=cuts[9], p95=cuts[18])


def write_predictions(path: Path, rows: Sequence[Judged]) -> None:
    """A Parquet file with a row a prompt."""
    pq.write_table(pa.Table.from_pylist([row.model_dump() for row in rows], _SCHEMA), path)


def read_predictions(evaluation: Artifact) -> list[Judged]:
    """The rows of an evaluation.

    Raises:
        CorruptArtifact: the file cannot be read, or is none of ours.
    """
    path = evaluation.path / PREDICTIONS
    try:
        return [Judged.model_validate(row) for row in pq.read_table(path).to_pylist()]
    except (OSError, ValueError) as error:
        raise CorruptArtifact(f"{path} is no table of predictions: {error}") from None
