"""Which of a prompt's completions suit the student: those that it finds likely itself.

Traces chosen by the student's own likelihood taught a 0.6B model where raw ones harmed it (docs/method.md). The log-probabilities are
given here: `rollout.student` has them made.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from supertiny.records import Record, Rollout, StepUsage
from supertiny.rollout.config import LikelihoodConfig


class Score(Record):
    """What the student says of one completion."""

    logprob: float | None
    """Mean log-probability of its tokens, end of turn included, nats a token; None where the student could not score it."""
    evidence: str
    """Why it could not."""
    steps: dict[str, StepUsage]


def likely(rollouts: Sequence[Rollout], mean_logprobs: Mapping[str, float], config: LikelihoodConfig) -> set[str]:
    """Ids of the accepted rollouts that stay. `keep_per_prompt` counts texts, so that no repetition takes another text's place.

    Args:
        mean_logprobs: by id of every accepted rollout, the mean log-probability of its completion's tokens under the student, nats a token.

    Raises:
        KeyError: an accepted rollout has none.
    """
    least = float("-inf") if config.min_logprob is None else config.min_logprob
    by_prompt: defaultdict[str, list[Rollout]] = defaultdict(list)
    for rollout in rollouts:
        if rollout.verdict.accepted and mean_logprobs[rollout.rollout_id] >= least:
            by_prompt[rollout.prompt.id].append(rollout)
    kept: set[str] = set()
    for group in by_prompt.values():
        ordered = sorted(group, key=lambda rollout: (-mean_logprobs[rollout.rollout_id], rollout.index))
        texts = list(dict.fromkeys(rollout.completion.text for rollout in ordered))[: config.keep_per_prompt]
        kept.update(rollout.rollout_id for rollout in group if rollout.completion.text in texts)
    return kept
