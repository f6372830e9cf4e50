"""Every rollout accounted for: the tables and the counts that an artifact is made of."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from supertiny.artifacts import write_atomically
from supertiny.errors import CorruptArtifact
from supertiny.records import Rollout
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


def publish(folder: Path, rollouts: Sequence[Rollout], last_attempt: dict[str, float]) -> dict[str, Any]:
    """Write both tables, then the ledger, and return the ledger.

    Args:
        last_attempt: how fast the rollouts were made that no earlier attempt had made.
    """
    accepted = [rollout for rollout in rollouts if rollout.verdict.accepted]
    rejected = [rollout for rollout in rollouts if not rollout.verdict.accepted]
    write_rollouts(folder / ACCEPTED, accepted)
    write_rollouts(folder / REJECTED, rejected)
    ledger = count(rollouts) | {"last_attempt": last_attempt}
    write_atomically(folder / LEDGER, json.dumps(ledger, indent=2))
    return ledger


def count(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Counts of rollouts, reasons and tokens."""
    accepted = [rollout for rollout in rollouts if rollout.verdict.accepted]
    reasons = Counter(rollout.verdict.reason for rollout in rollouts if not rollout.verdict.accepted)
    usages = [rollout.completion.usage for rollout in rollouts]
    return {
        "prompts": len({rollout.prompt.id for rollout in rollouts}),
        "rollouts": len(rollouts),
        "accepted": len(accepted),
        "rejected": len(rollouts) - len(accepted),
        "rejected_by_reason": dict(reasons.most_common()),
        "accepted_by_slice": dict(Counter(rollout.prompt.slice for rollout in accepted).most_common()),
        "accepted_with_teacher_logprobs": sum(rollout.completion.top_k is not None for rollout in accepted),
        "model_calls": sum(usage.calls for usage in usages),
        "prompt_tokens": sum(usage.prompt_tokens for usage in usages),
        "cached_tokens": sum(usage.cached_tokens for usage in usages),
        "completion_tokens": sum(usage.completion_tokens for usage in usages),
    }
