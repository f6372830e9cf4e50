"""A cascade: the student's answer where it is good enough, else the teacher's; both calls are paid for."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Literal

from supertiny.errors import ArmBusy, PromptRefused
from supertiny.llm.base import Sampling
from supertiny.records import Completion, Message, Prompt, Record
from supertiny.serving.arm import Arm
from supertiny.tasks.base import Task

Outcome = Literal["kept", "invalid", "unsure", "refused", "busy", "failed"]
"""Why the student's answer stands, or why the teacher was asked."""
log = logging.getLogger(__name__)


class Answered(Record):
    """Which arm's answer it is, and why; the completion's usage is that of both calls, where two were made."""

    arm: Literal["student", "teacher"]
    outcome: Outcome
    completion: Completion
    confidence: float | None
    """The student's; None where it gave no answer."""


def confidence(completion: Completion) -> float:
    """The probability of the whole completion under the model that drew it, in [0, 1]; 0 where the engine gave no logprobs."""
    return math.exp(sum(completion.token_logprobs)) if completion.token_logprobs else 0.0


async def cascade(student: Arm, teacher: Arm, task: Task, threshold: float, messages: Sequence[Message], sampling: Sampling) -> Answered:
    """The student's answer where it is valid, and drawn with a confidence of at least `threshold`; else the teacher's.

    Raises:
        PromptRefused, ArmBusy: the teacher was asked and had no answer.
    """
    first: Completion | None = None
    outcome: Outcome
    try:
        first = await student.complete(messages, sampling, logprobs=1)
        outcome = _judged(first, task, threshold, messages)
    except PromptRefused:
        outcome = "refused"
    except ArmBusy:
        outcome = "busy"
    except TimeoutError:  # nothing is left for the teacher
        raise
    except Exception as error:
        log.error("the student, or the verifier of its answer, failed: %s", type(error).__name__, exc_info=error)
        outcome = "failed"
    sure = confidence(first) if first is not None else None
    if first is not None and outcome == "kept":
        return Answered(arm="student", outcome=outcome, completion=first, confidence=sure)
    second = await teacher.complete(messages, sampling)
    if first is not None:
        second = second.model_copy(update={"usage": first.usage + second.usage})
    return Answered(arm="teacher", outcome=outcome, completion=second, confidence=sure)


def _judged(completion: Completion, task: Task, threshold: float, messages: Sequence[Message]) -> Outcome:
    prompt = Prompt(id="cascade", messages=list(messages))  # without a reference: the verifier says whether the answer can be right
    if completion.finish_reason == "length" or not task.verify(prompt, completion.text).accepted:
        return "invalid"
    return "kept" if confidence(completion) >= threshold else "unsure"
