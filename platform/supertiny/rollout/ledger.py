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
from supertiny.rollout_table import ACCEPTED, REJECTED, write_rollouts

LEDGER = "ledger.json"


def check_complete(rollouts: Sequence[Rollout], expected_ids: Sequence[str]) -> None:
    """Check that every expected rollout is there exactly once.

    Raises:
        CorruptArtifact: one is missing, there twice, or not expected.
    """
    seen = Counter(rollout.rollout_id for rollout in rollouts)
    wrong = {
        "missing": sorted(set(expected_ids) - set(seen)),
        "there more than once": sorted(name for name, count in seen.items() if count > 1),
        "not asked for": sorted(set(seen) - set(expected_ids)),
    }
    problems = [f"{len(names)} {what} ({', '.join(names[:3])})" for what, names in wrong.items() if names]
    if problems:
        raise CorruptArtifact(f"{len(rollouts)} rollouts for {len(expected_ids)} asked for: {'; '.join(problems)}")


def publish(folder: Path, rollouts: Sequence[Rollout], more: Mapping[str, Any]) -> dict[str, Any]:
    """Write both tables, then the ledger, and return the ledger.

    Args:
        more: what the ledger says besides the counts.
    """
    accepted = [rollout for rollout in rollouts if rollout.verdict.accepted]
    rejected = [rollout for rollout in rollouts if not rollout.verdict.accepted]
    write_rollouts(folder / ACCEPTED, accepted)
    write_rollouts(folder / REJECTED, rejected)
    ledger = count(rollouts) | dict(more)
    write_atomically(folder / LEDGER, json.dumps(ledger, indent=2))
    return ledger


def count(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Counts of rollouts, reasons and tokens, the judge's apart, and the engine's busy seconds for all of them."""
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
        "engine_seconds": sum(rollout.engine_seconds for rollout in rollouts),
        "by_pipeline_step": {
            name: {**_tokens([step.usage]), "engine_seconds": step.engine_seconds} for name, step in add_steps(rollouts).items()
        },
    }


def add_steps(rollouts: Iterable[Rollout]) -> dict[str, StepUsage]:
    """What each pipeline step took, all rollouts together, the dearest in engine seconds first."""
    total: dict[str, StepUsage] = {}
    for rollout in rollouts:
        for name, step in rollout.steps.items():
            total[name] = total.get(name, StepUsage()) + step
    return dict(sorted(total.items(), key=lambda item: -item[1].engine_seconds))


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


def _tokens(usages: Sequence[Usage]) -> dict[str, int]:
    total = sum(usages, Usage(calls=0))
    return {
        "model_calls": total.calls,
        "prompt_tokens": total.prompt_tokens,
        "cached_tokens": total.cached_tokens,
        "completion_tokens": total.completion_tokens,
    }
