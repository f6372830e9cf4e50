"""What each rollout takes of an engine: the tokens of all its calls, and its share of the time in which the engine was busy."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from supertiny.llm.base import Llm
from supertiny.records import Completion, Usage


class Clock:
    """Busy time shared equally, at every moment, among the calls in flight; the shares of all calls add up to it.

    Processor sharing: `share` grows by dt / n while n calls are in flight, and a call's part is what it grew meanwhile.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._in_flight = 0
        self._share = 0.0
        self._at = now()

    def begin(self) -> float:
        """The share so far, as a call begins."""
        return self._advance(1)

    def end(self, begun: float) -> float:
        """Seconds that are the part of a call that began at share `begun` and now ends."""
        return self._advance(-1) - begun

    def _advance(self, change: int) -> float:
        now = self._now()
        if self._in_flight:
            self._share += (now - self._at) / self._in_flight
        self._at = now
        self._in_flight += change
        return self._share


@dataclass
class Meter:
    """One rollout's calls of a model. What a call that is cancelled or fails has cost in tokens, nobody says."""

    llm: Llm
    clock: Clock
    usage: Usage = field(default_factory=lambda: Usage(calls=0))
    engine_seconds: float = 0.0

    async def complete(self, *args: Any, **options: Any) -> list[Completion]:
        """As `Llm.complete`."""
        begun = self.clock.begin()
        try:
            completions = await self.llm.complete(*args, **options)
        finally:
            self.engine_seconds += self.clock.end(begun)
        self.usage = sum((completion.usage for completion in completions), self.usage)
        return completions

    async def score(self, *args: Any, **options: Any) -> Completion:
        """As `Llm.score`."""
        begun = self.clock.begin()
        try:
            completion = await self.llm.score(*args, **options)
        finally:
            self.engine_seconds += self.clock.end(begun)
        self.usage += completion.usage
        return completion
