"""How fast vLLM answers with a model folder: one request at a time, and several together."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from supertiny.errors import NoAnswer, PromptRefused
from supertiny.llm.base import Llm, Sampling
from supertiny.llm.config import EngineConfig
from supertiny.llm.vllm import VllmLlm
from supertiny.records import Prompt, Record, Tool

WARM_UP_TOKENS = 8
"""Length of the answers before anything is timed."""


class Speed(Record):
    """Times of whole answers, their prompts' prefill included."""

    seconds_per_token: float
    """Median over requests sent one at a time: seconds from question to answer, by generated tokens."""
    tokens_per_second: dict[int, float]
    """Generated tokens a second, by how many requests are in flight."""


def measure_speed(
    folder: Path,
    prompts: Sequence[Prompt],
    tools: Sequence[Tool],
    engine: EngineConfig,
    max_tokens: int,
    batches: Sequence[int],
) -> Speed:
    """One engine, warmed up, then `prompts` one at a time, and for every other batch as many as keep it full twice over.

    Raises:
        NoAnswer: nothing was generated; a prompt that does not fit beside `max_tokens` has no answer, as where it is evaluated.
    """
    llm = VllmLlm(folder, engine)
    try:
        return asyncio.run(_measure(llm, prompts, tools, max_tokens, batches))
    finally:
        llm.close()


def median_speed(runs: Sequence[Speed]) -> Speed:
    """Of one model measured several times, number by number."""
    return Speed(
        seconds_per_token=statistics.median(run.seconds_per_token for run in runs),
        tokens_per_second={batch: statistics.median(run.tokens_per_second[batch] for run in runs) for batch in runs[0].tokens_per_second},
    )


async def time_answers(
    llm: Llm, prompts: Sequence[Prompt], in_flight: int, max_tokens: int, tools: Sequence[Tool] = ()
) -> tuple[int, float]:
    """Tokens of all answers, and the seconds until the last one ends."""
    slots = asyncio.Semaphore(in_flight)

    async def ask(prompt: Prompt) -> int:
        async with slots:
            try:
                (completion,) = await llm.complete(prompt.messages, tools=tools, sampling=Sampling(max_tokens=max_tokens))
            except PromptRefused:
                return 0
            return completion.usage.completion_tokens

    started = time.monotonic()
    tokens = sum(await asyncio.gather(*map(ask, prompts)))
    return tokens, time.monotonic() - started


async def warm_up(llm: Llm, prompts: Sequence[Prompt], in_flight: int, tools: Sequence[Tool] = ()) -> None:
    """Short answers before anything is timed, as many together as at most later."""
    await time_answers(llm, fill(prompts, in_flight), in_flight, WARM_UP_TOKENS, tools)


def fill(prompts: Sequence[Prompt], number: int) -> list[Prompt]:
    """So many of them, from the first again after the last."""
    return [prompts[at % len(prompts)] for at in range(number)]


async def _measure(llm: Llm, prompts: Sequence[Prompt], tools: Sequence[Tool], max_tokens: int, batches: Sequence[int]) -> Speed:
    await warm_up(llm, prompts, max(batches), tools)
    alone = [await time_answers(llm, [prompt], 1, max_tokens, tools) for prompt in prompts]
    rates = {1: sum(tokens for tokens, _ in alone) / sum(seconds for _, seconds in alone)}
    for batch in batches:
        if batch > 1:
            tokens, seconds = await time_answers(llm, fill(prompts, 2 * batch), batch, max_tokens, tools)
            rates[batch] = tokens / seconds
    if not all(rates.values()):
        raise NoAnswer("no prompt got a token in answer: the model ends at once, or max_tokens leaves no room for the prompts")
    return Speed(seconds_per_token=statistics.median(seconds / tokens for tokens, seconds in alone if tokens), tokens_per_second=rates)
