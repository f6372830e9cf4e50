"""What is decided once every completion of a prompt is there: agreement, the majority as reference, duplicates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from supertiny.records import Call, Rollout
from supertiny.tasks.calls import matches, parse


def filter_groups(rollouts: Sequence[Rollout], *, min_agreement: float | None, drop_duplicates: bool) -> list[Rollout]:
    """The same rollouts in the same order, some of them rejected now, prompts without a reference given their majority's.

    Args:
        rollouts: whole groups, each prompt's completions next to each other.
        min_agreement: smallest share of a group that must be accepted and make the same calls; None asks for none.
        drop_duplicates: reject the second of two equal texts of a prompt.
    """
    result = []
    for _, members in groupby(rollouts, key=lambda rollout: rollout.prompt.id):
        group = _agree(list(members), min_agreement)
        result += _without_duplicates(group) if drop_duplicates else group
    return result


def majority(answers: Sequence[list[Call]]) -> tuple[list[Call], int]:
    """The calls that most answers make, the earliest such on a tie, and how many make them; `answers` is not empty."""
    counts = [sum(matches(other, answer) for other in answers) for answer in answers]
    best = max(range(len(answers)), key=lambda at: (counts[at], -at))
    return answers[best], counts[best]


def _agree(group: list[Rollout], min_agreement: float | None) -> list[Rollout]:
    answers = {at: parse(rollout.completion.text) for at, rollout in enumerate(group) if rollout.verdict.accepted}
    if not answers:
        return group
    calls, count = majority(list(answers.values()))
    if min_agreement is not None and count / len(group) < min_agreement:
        evidence = f"{count} of {len(group)} completions are accepted and make the same calls; min_agreement is {min_agreement}"
        return [_reject(rollout, "no_agreement", evidence) if rollout.verdict.accepted else rollout for rollout in group]
    if group[0].prompt.reference is not None:
        return group
    prompt = group[0].prompt.model_copy(update={"reference": calls})
    group = [rollout.model_copy(update={"prompt": prompt}) for rollout in group]
    evidence = f"{count} of {len(answers)} accepted completions make other calls"
    return [_reject(r, "minority", evidence) if at in answers and not matches(answers[at], calls) else r for at, r in enumerate(group)]


def _without_duplicates(group: list[Rollout]) -> list[Rollout]:
    seen: Counter[str] = Counter()
    result = []
    for rollout in group:
        if rollout.verdict.accepted:
            seen[rollout.completion.text] += 1
            if seen[rollout.completion.text] > 1:
                rollout = _reject(rollout, "duplicate", "an earlier completion of the prompt has the same text")
        result.append(rollout)
    return result


def _reject(rollout: Rollout, reason: str, evidence: str) -> Rollout:
    verdict = rollout.verdict.model_copy(update={"accepted": False, "reason": reason, "evidence": evidence})
    return rollout.model_copy(update={"verdict": verdict})
