"""What follows from a judge's score for a rollout."""

from __future__ import annotations

from supertiny.records import Judgement, Verdict
from supertiny.rollout.config import JudgeConfig


def with_judgement(verdict: Verdict, judgement: Judgement, config: JudgeConfig) -> Verdict:
    """An accepted verdict after the judge: rejected where the score is too low, or there is none."""
    if judgement.score is None:
        evidence = f"no more than half of {config.votes} answers give a score from 1 to {config.max_score}: {judgement.answers[0][:80]!r}"
        rejected = {"accepted": False, "reason": "no_score", "evidence": evidence}
    elif judgement.score < config.min_score:
        evidence = f"a mean score of {judgement.score:.2f}; min_score is {config.min_score:g}"
        rejected = {"accepted": False, "reason": "low_score", "evidence": evidence}
    else:
        rejected = {}
    return verdict.model_copy(update={**rejected, "judgement": judgement})
