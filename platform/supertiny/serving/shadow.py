"""Shadow traffic: the other arm answers a copy, nobody sees what, and the two answers are compared."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

from supertiny.errors import MalformedCall
from supertiny.llm.base import Sampling
from supertiny.records import Completion, Message, Prompt
from supertiny.serving.arm import Arm
from supertiny.serving.config import ShadowConfig
from supertiny.serving.meter import Meter
from supertiny.tasks.base import Task
from supertiny.tasks.calls import parse


class Shadow:
    """Copies of answered requests, few at a time.

    A copy is sent when its answer has gone out, so it cannot slow that one; and it is dropped rather than queued.
    """

    def __init__(self, task: Task, meter: Meter, draw: Callable[[], float] = random.random) -> None:
        self._task = task
        self._meter = meter
        self._draw = draw
        self._copies: set[asyncio.Task[None]] = set()

    @property
    def in_flight(self) -> int:
        """Copies under way."""
        return len(self._copies)

    def copy(
        self, config: ShadowConfig, other: tuple[str, Arm], messages: Sequence[Message], sampling: Sampling, answer: str, seconds: float
    ) -> None:
        """Ask the other arm too, unless there is too much to do.

        Args:
            other: the arm that did not answer, with its name.
            answer: the text that went out.
            seconds: at most for the copy.
        """
        if self._draw() >= config.fraction:
            return
        busy = self._meter.in_flight.total() - self.in_flight
        if self.in_flight >= config.in_flight or busy >= config.busy_requests:
            self._meter.shadow("dropped")
            return
        self._meter.asked(other[0], 1)
        task = asyncio.create_task(self._compare(*other, list(messages), sampling, answer, seconds))
        self._copies.add(task)
        task.add_done_callback(self._copies.discard)

    async def _compare(self, name: str, arm: Arm, messages: list[Message], sampling: Sampling, answer: str, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                copy: Completion = await arm.complete(messages, sampling)
            teacher, student = (copy.text, answer) if name == "teacher" else (answer, copy.text)
            outcome = await asyncio.to_thread(compared, self._task, messages, teacher, student)
        except Exception:  # whatever it was, no client waits for it
            outcome = "failed"
        finally:
            self._meter.asked(name, -1)
        self._meter.shadow(outcome)


def compared(task: Task, messages: Sequence[Message], teacher: str, student: str) -> str:
    """`same` where the task's verifier takes the student's answer for the teacher's calls, else `different`.

    `incomparable` where the teacher's answer is no well-formed list of calls: then there is nothing to be the same as.
    """
    try:
        reference = parse(teacher)
    except MalformedCall:
        return "incomparable"
    prompt = Prompt(id="shadow", messages=list(messages), reference=reference)
    return "same" if task.verify(prompt, student).accepted else "different"
