"""The threshold of a cascade, from held-out prompts whose right calls are known."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import httpx
from pydantic import Field

from supertiny.records import Prompt, Record
from supertiny.serving.headers import ARM_HEADER, CONFIDENCE_HEADER
from supertiny.serving.stream import answer_text
from supertiny.tasks.base import Task

_STEPS = 20


class Scored(Record):
    """One held-out answer of the student."""

    confidence: float = Field(ge=0, le=1)
    correct: bool


class Calibration(Record):
    """A threshold, and what it does on the held-out prompts."""

    threshold: float
    """For `cascade.threshold`; 1 and nothing kept where no lower one will do."""
    kept_fraction: float
    """Share of the answers that stand."""
    error_fraction: float
    """Share of those that are wrong."""
    error_bound: float
    """Upper confidence bound of that share on prompts like these."""
    num_prompts: int


async def held_out(client: httpx.AsyncClient, prompts: Sequence[Prompt], task: Task) -> list[Scored]:
    """The student's answers to prompts whose right calls are known, from an application in mode `cascade` with threshold 0.

    Those that the verifier refuses there are left out: no threshold would let them stand.
    """
    scored = []
    for prompt in prompts:
        answer = await client.post("/v1/chat/completions", json={"model": "auto", "messages": prompt.messages})
        answer.raise_for_status()
        if answer.headers.get(ARM_HEADER) == "student":
            text = answer_text(answer.json()["choices"][0]["message"])
            confidence = float(answer.headers[CONFIDENCE_HEADER])
            scored.append(Scored(confidence=confidence, correct=task.verify(prompt, text).accepted))
    return scored


def calibrate(answers: Sequence[Scored], max_error_fraction: float, *, significance: float = 0.05) -> Calibration:
    """The lowest threshold whose kept answers are wrong in at most `max_error_fraction` of all cases, at confidence 1 - `significance`.

    Twenty thresholds are tried, those that keep 5, 10, ... 100 % of the answers, each against the exact bound of Clopper and Pearson (1934)
    at `significance` / 20; so all twenty bounds hold together, and the one that keeps most may be chosen (Bonferroni, as in Learn then
    Test, arXiv 2110.01052). The prompts must be none that the student, or anything else, was fitted on.

    Raises:
        ValueError: there is no answer.
    """
    if not answers:
        raise ValueError("a threshold needs held-out answers, got none")
    ordered = sorted((each.confidence for each in answers), reverse=True)
    thresholds = sorted({ordered[ceil(len(ordered) * step / _STEPS) - 1] for step in range(1, _STEPS + 1)})
    tried = (_kept(answers, threshold, significance / _STEPS) for threshold in thresholds)
    nothing = Calibration(threshold=1.0, kept_fraction=0, error_fraction=0, error_bound=1, num_prompts=len(answers))
    return next((each for each in tried if each.error_bound <= max_error_fraction), nothing)


def _kept(answers: Sequence[Scored], threshold: float, significance: float) -> Calibration:
    verdicts = [each.correct for each in answers if each.confidence >= threshold]
    wrong = verdicts.count(False)
    return Calibration(
        threshold=threshold,
        kept_fraction=len(verdicts) / len(answers),
        error_fraction=wrong / len(verdicts),
        error_bound=upper_bound(wrong, len(verdicts), significance),
        num_prompts=len(answers),
    )


def upper_bound(wrong: int, count: int, significance: float) -> float:
    """The one-sided Clopper-Pearson bound of a share of which `wrong` of `count` were seen."""
    from scipy.stats import beta

    return 1.0 if wrong == count else float(beta.ppf(1 - significance, wrong + 1, count - wrong))
