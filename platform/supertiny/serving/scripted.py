"""A deployment that stands in for an engine's: the same calls, scripted answers, no model and no vLLM."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from supertiny.llm.base import Sampling
from supertiny.llm.config import ScriptedConfig
from supertiny.llm.scripted import ScriptedLlm
from supertiny.records import Completion, Message, Tool, Usage
from supertiny.serving.call import CallContext, in_time
from supertiny.serving.stream import Piece

SURE = -0.01
"""Logprob of every token: what it says, it says with confidence."""


class ScriptedServer:
    """Answers the same to everything, a whole answer after `delay_seconds`, a streamed one word by word in that time."""

    def __init__(self, config: ScriptedConfig) -> None:
        self._config = config
        self._llm = ScriptedLlm.from_config(config)
        self._places = asyncio.Semaphore(config.max_num_seqs)
        self._running = 0

    async def complete(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        n: int,
        sampling: Sampling,
        logprobs: int,
        call: CallContext,
        adapter: str | None = None,
    ) -> list[Completion]:
        """`n` times the scripted answer."""
        self._running += 1
        try:
            async with asyncio.timeout(call.seconds):
                completions = await self._llm.complete(messages, tools=tools, n=n, sampling=sampling)
        finally:
            self._running -= 1
        if not logprobs:
            return completions
        return [each.model_copy(update={"token_logprobs": [SURE] * each.usage.completion_tokens}) for each in completions]

    async def stream(
        self, messages: Sequence[Message], tools: Sequence[Tool], sampling: Sampling, call: CallContext, adapter: str | None = None
    ) -> AsyncIterator[Piece]:
        """The scripted answer, word by word."""
        self._running += 1
        try:
            async for piece in in_time(self._words(), call.seconds):
                yield piece
        finally:
            self._running -= 1

    async def _words(self) -> AsyncIterator[Piece]:
        words = self._config.answer.split(" ")
        async with self._places:
            for at, word in enumerate(words):
                await asyncio.sleep(self._config.delay_seconds / len(words))
                yield Piece(text=word if at == len(words) - 1 else f"{word} ")
        yield Piece(finish_reason="stop", usage=Usage(prompt_tokens=1, completion_tokens=len(words)))

    async def running(self) -> int:
        """Requests that this replica has in hand."""
        return self._running
