"""A fake model whose answers are given."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from supertiny.llm.base import GREEDY, Sampling
from supertiny.llm.config import ScriptedConfig
from supertiny.records import Completion, Message, Tool, Usage


class ScriptedLlm:
    """Answers with what `script` makes of the messages, after a fixed delay. Nothing makes it fail for good.

    Args:
        script: from messages to text; what it raises, `complete` raises.
        delay_seconds: how long each call takes.
        max_num_seqs: calls under way together, the others wait; None takes all at once.
    """

    def __init__(self, script: Callable[[Sequence[Message]], str], delay_seconds: float = 0.0, max_num_seqs: int | None = None) -> None:
        self.failure: BaseException | None = None
        self._script = script
        self._delay_seconds = delay_seconds
        self._places = asyncio.Semaphore(max_num_seqs) if max_num_seqs else None

    @classmethod
    def from_config(cls, config: ScriptedConfig) -> ScriptedLlm:
        """One that always answers the same."""
        return cls(lambda _: config.answer, config.delay_seconds, config.max_num_seqs)

    async def complete(
        self, messages: Sequence[Message], *, tools: Sequence[Tool] = (), n: int = 1, sampling: Sampling = GREEDY, logprobs: int = 0
    ) -> list[Completion]:
        """The scripted text, `n` times, one token a word."""
        await self._take_time()
        return [self._completion(messages, self._script(messages)) for _ in range(n)]

    async def score(self, messages: Sequence[Message], text: str, *, tools: Sequence[Tool] = (), logprobs: int = 1) -> Completion:
        """The text as given, without tokens: a scripted model has none."""
        await self._take_time()
        return self._completion(messages, text)

    async def _take_time(self) -> None:
        if self._places is None:
            await asyncio.sleep(self._delay_seconds)
            return
        async with self._places:
            await asyncio.sleep(self._delay_seconds)

    @staticmethod
    def _completion(messages: Sequence[Message], text: str) -> Completion:
        prompt_tokens = sum(len(str(message.get("content", "")).split()) for message in messages)
        return Completion(text=text, usage=Usage(prompt_tokens=prompt_tokens, completion_tokens=len(text.split())))
