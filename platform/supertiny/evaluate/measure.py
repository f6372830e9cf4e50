"""Answers of one system to given prompts, with the seconds that they took. Works over any `Llm`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from supertiny.errors import PromptRefused
from supertiny.evaluate.config import System
from supertiny.llm.base import GREEDY, Llm, Sampling
from supertiny.records import Completion, Message, Prompt, Record, Tool, Usage
from supertiny.tasks.base import Task

Ask = Callable[[Prompt], Awaitable[Completion]]
"""A system: from a prompt to its answer."""
PROGRESS_SECONDS = 5.0
log = logging.getLogger(__name__)


class Answer(Record):
    """What a system said to one prompt."""

    prompt_id: str
    text: str
    usage: Usage
    refusal: str = ""
    """Why the engine would not take the prompt; then there is no text."""


class Measurement(Record):
    """Everything that was measured of one system."""

    answers: list[Answer]
    """In the order of the prompts, from the quality pass."""
    answer_seconds: float
    """Wall time of the quality pass."""
    latencies: list[float]
    """Seconds of each prompt of the latency pass."""
    engine_seconds: float
    """Building the engine and the warm-up."""


class UnscoredLlm:
    """An `Llm` without logprobs, whose `score` is free: they are for training, and no one who asks for an answer pays for them."""

    def __init__(self, llm: Llm) -> None:
        self._llm = llm

    async def complete(
        self, messages: Sequence[Message], *, tools: Sequence[Tool] = (), n: int = 1, sampling: Sampling = GREEDY, logprobs: int = 0
    ) -> list[Completion]:
        """What the model says."""
        return await self._llm.complete(messages, tools=tools, n=n, sampling=sampling)

    async def score(self, messages: Sequence[Message], text: str, *, tools: Sequence[Tool] = (), logprobs: int = 1) -> Completion:
        """The text as given, without tokens."""
        return Completion(text=text, usage=Usage(calls=0))


def make_system(kind: System, task: Task, llm: Llm, max_tokens: int) -> Ask:
    """The student's one greedy call, or the task's teacher pipeline without its scoring."""
    if kind == "teacher":
        unscored = UnscoredLlm(llm)
        return lambda prompt: task.teach(prompt, unscored)

    async def one_call(prompt: Prompt) -> Completion:
        (completion,) = await llm.complete(prompt.messages, tools=task.tools, sampling=Sampling(max_tokens=max_tokens))
        return completion

    return one_call


async def answer_all(ask: Ask, prompts: Sequence[Prompt], concurrency: int, label: str) -> tuple[list[Answer], float]:
    """Every answer, in the order of the prompts, and the wall time of all; a progress line every few seconds."""
    slots = asyncio.Semaphore(concurrency)
    started = reported = time.monotonic()
    done = 0

    async def answer(prompt: Prompt) -> Answer:
        nonlocal done, reported
        async with slots:
            given = await _answer(ask, prompt)
        done += 1
        now = time.monotonic()
        if now - reported > PROGRESS_SECONDS or done == len(prompts):
            reported = now
            log.info("%s: %d of %d prompts, %.0f a second", label, done, len(prompts), done / (now - started))
        return given

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(answer(prompt)) for prompt in prompts]
    return [task.result() for task in tasks], time.monotonic() - started


async def latencies(ask: Ask, prompts: Sequence[Prompt]) -> list[float]:
    """Seconds of each prompt, asked one after the other with nothing else in flight."""
    seconds = []
    for prompt in prompts:
        started = time.monotonic()
        await _answer(ask, prompt)
        seconds.append(time.monotonic() - started)
    return seconds


async def _answer(ask: Ask, prompt: Prompt) -> Answer:
    try:
        completion = await ask(prompt)
    except PromptRefused as error:
        return Answer(prompt_id=prompt.id, text="", usage=Usage(calls=0), refusal=str(error))
    return Answer(prompt_id=prompt.id, text=completion.text, usage=completion.usage)
