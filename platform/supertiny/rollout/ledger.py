"""Every rollout accounted for: the tables and the counts that an artifact is made of."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from supertiny.artifacts import write_atomically
from supertiny.errors import CorruptArtifact
from supertiny.records import Rollout, StepUsage, Usage
from supertiny.rollout_table import ACCEPTED, REJECTED, TableWriter

LEDGER = "ledger.json"


def check_complete(ids: Sequence[str], expected_ids: Sequence[str]) -> None:
    """Check that every expected id is there exactly once.

    Raises:
        CorruptArtifact: one is missing, there twice, or not expected.
    """
    seen = Counter(ids)
    wrong = {
        "missing": sorted(set(expected_ids) - set(seen)),
        "there more than once": sorted(name for name, count in seen.items() if count > 1),
        "not asked for": sorted(set(seen) - set(expected_ids)),
    }
    problems = [f"{len(names)} {what} ({', '.join(names[:3])})" for what, names in wrong.items() if names]
    if problems:
        raise CorruptArtifact(f"{len(ids)} rollouts for {len(expected_ids)} asked for: {'; '.join(problems)}")


def write_tables(folder: Path, chunks: Iterable[Sequence[Rollout]]) -> dict[str, Any]:
    """Write both tables, and return the counts of all chunks together.

    Args:
        chunks: rollouts of whole groups; no more than one is held.
    """
    counts = count([])
    with TableWriter(folder / ACCEPTED) as accepted, TableWriter(folder / REJECTED) as rejected:
        for rollouts in chunks:
            accepted.write([rollout for rollout in rollouts if rollout.verdict.accepted])
            rejected.write([rollout for rollout in rollouts if not rollout.verdict.accepted])
            add(counts, count(rollouts))
    for name in ("rejected_by_reason", "accepted_by_slice"):
        counts[name] = dict(Counter(counts[name]).most_common())
    counts["by_pipeline_step"] = dict(sorted(counts["by_pipeline_step"].items(), key=lambda item: -item[1]["engine_seconds"]))
    return counts


def publish(folder: Path, counts: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Write the ledger, and return it.

    Args:
        more: what it says besides the counts.
    """
    ledger = dict(counts) | dict(more)
    write_atomically(folder / LEDGER, json.dumps(ledger, indent=2))
    return ledger


def add(total: dict[str, Any], counts: Mapping[str, Any]) -> None:
    """Add counts to a total in place, name by name at every depth."""
    for name, value in counts.items():
        if isinstance(value, Mapping):
            add(total.setdefault(name, {}), value)
        else:
            total[name] = total.get(name, 0) + value


def count(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Counts of rollouts and reasons; tokens of the pipelines, of the judge and of all calls; the engine's busy seconds for all."""
    accepted = [rollout for rollout in rollouts if rollout.verdict.accepted]
    reasons = Counter(rollout.verdict.reason for rollout in rollouts if not rollout.verdict.accepted)
    judgements = [rollout.verdict.judgement for rollout in rollouts if rollout.verdict.judgement is not None]
    return {
        "prompts": len({rollout.prompt.id for rollout in rollouts}),
        "rollouts": len(rollouts),
        "accepted": len(accepted),
        "rejected": len(rollouts) - len(accepted),
        "rejected_by_reason": dict(reasons.most_common()),
        "accepted_by_slice": dict(Counter(rollout.prompt.slice for rollout in accepted).most_common()),
        "accepted_with_teacher_logprobs": sum(rollout.completion.top_k is not None for rollout in accepted),
        **_tokens([rollout.completion.usage for rollout in rollouts]),
        "judge": _tokens([judgement.usage for judgement in judgements]),
        "total": _tokens([step.usage for rollout in rollouts for step in rollout.steps.values()]),
        "engine_seconds": sum(rollout.engine_seconds for rollout in rollouts),
        "by_pipeline_step": _by_step(rollouts),
    }


def steps_of(counts: Mapping[str, Any]) -> dict[str, StepUsage]:
    """What each pipeline step took, from its counts."""
    names = ("prompt_tokens", "cached_tokens", "completion_tokens")
    return {
        step: StepUsage(
            usage=Usage(calls=each["model_calls"], **{name: each[name] for name in names}),
            engine_seconds=each["engine_seconds"],
            endpoint_usd=each["endpoint_usd"],
        )
        for step, each in counts["by_pipeline_step"].items()
    }


def _by_step(rollouts: Sequence[Rollout]) -> dict[str, dict[str, float]]:
    total: dict[str, StepUsage] = {}
    for rollout in rollouts:
        for name, step in rollout.steps.items():
            total[name] = total.get(name, StepUsage()) + step
    return {
        name: {**_tokens([step.usage]), "engine_seconds": step.engine_seconds, "endpoint_usd": step.endpoint_usd}
        for name, step in total.items()
    }


def in_one_line(ledger: Mapping[str, Any]) -> str:
    """What a person wants to know of a ledger at the end of a job."""
    cost, thousand = ledger["cost"], ledger["cost"]["usd_per_thousand_accepted"]
    dollars = f"${cost['reserved_usd']:.3g} by reservation, ${cost['used_usd']:.3g} by use"
    each = "" if thousand is None else f", ${thousand:.3g} a thousand accepted"
    steps = [
        f"{name} {step['model_calls']} calls, {step['prompt_tokens']} prompt ({step['cached_tokens']} cached) and "
        f"{step['completion_tokens']} completion tokens, ${cost['by_pipeline_step'][name]['reserved_usd']:.3g}"
        for name, step in ledger["by_pipeline_step"].items()
    ]
    counts = f"{ledger['rollouts']} rollouts, {ledger['accepted']} accepted, rejected {ledger['rejected_by_reason']}"
    return "; ".join([counts, dollars + each, *steps])


def warning(ledger: Mapping[str, Any]) -> str | None:
    """What a person should see at once of a ledger: that the job ended well, and made nothing."""
    if ledger["accepted"]:
        return None
    return f"none of the {ledger['rollouts']} rollouts was accepted: {REJECTED} says of each why; to make them again, remove the artifact"


def _tokens(usages: Sequence[Usage]) -> dict[str, int]:
    total = sum(usages, Usage(calls=0))
    return {
        "model_calls": total.calls,
        "prompt_tokens": total.prompt_tokens,
        "cached_tokens": total.cached_tokens,
        "completion_tokens": total.completion_tokens,
    }
