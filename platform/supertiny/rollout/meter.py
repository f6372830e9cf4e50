"""What each rollout takes of an engine: the tokens of all its calls, and its share of the time in which the engine was busy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from supertiny.llm.base import Llm, current_step, spent
from supertiny.llm.config import TokenPriceConfig
from supertiny.records import Completion, StepUsage, Usage

T = TypeVar("T")


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
    """One rollout's calls of a model, by pipeline step.

    What a call that fails has cost in tokens, nobody says; of one that is cancelled, an engine in this process does.
    """

    llm: Llm
    clock: Clock
    step: str | None = None
    """Under which all calls count; None asks who calls."""
    price: TokenPriceConfig | None = None
    steps: dict[str, StepUsage] = field(default_factory=dict)

    @property
    def total(self) -> StepUsage:
        """Of all steps."""
        return sum(self.steps.values(), StepUsage())

    async def complete(self, *args: Any, **options: Any) -> list[Completion]:
        """As `Llm.complete`."""
        return await self._measured(self.llm.complete(*args, **options), lambda completions: completions)

    async def score(self, *args: Any, **options: Any) -> Completion:
        """As `Llm.score`."""
        return await self._measured(self.llm.score(*args, **options), lambda completion: [completion])

    async def _measured(self, call: Awaitable[T], completions: Callable[[T], list[Completion]]) -> T:
        step, begun, usage = self.step or current_step(), self.clock.begin(), Usage(calls=0)
        try:
            answer = await call
            usage = sum((completion.usage for completion in completions(answer)), usage)
        except asyncio.CancelledError as error:
            usage = spent(error)
            raise
        finally:
            usd = self.price.usd(usage) if self.price else 0.0
            took = StepUsage(usage=usage, engine_seconds=self.clock.end(begun), endpoint_usd=usd)
            self.steps[step] = self.steps.get(step, StepUsage()) + took
        return answer
