"""Probes that draw a real token; many callers share one, so that they cannot be used to make work."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from supertiny.serving.arm import Arm

_SECONDS = 10
_KEPT_SECONDS = 1.0
log = logging.getLogger(__name__)


class Probes:
    """Whether arms draw a token; an answer is kept for a second."""

    def __init__(self, arms: Mapping[str, Arm]) -> None:
        self._arms = arms
        self._last: asyncio.Task[dict[str, str]] | None = None
        self._at = 0.0
        self._starting: asyncio.Task[dict[str, str]] | None = None
        self._answered: set[str] = set()

    async def alive(self) -> dict[str, str]:
        """By name `ok` or `failed`: whether each arm draws a token in time."""
        now = asyncio.get_running_loop().time()
        if self._last is None or (self._last.done() and now - self._at > _KEPT_SECONDS):
            self._last, self._at = asyncio.create_task(_states(self._arms)), now
        return await asyncio.shield(self._last)

    async def waiting_for(self) -> list[str]:
        """The arms that have not drawn a token since this router started; those that have are asked no more."""
        if self._starting is None or self._starting.done():
            self._starting = asyncio.create_task(_states({name: arm for name, arm in self._arms.items() if name not in self._answered}))
        states = await asyncio.shield(self._starting)
        self._answered.update(name for name, state in states.items() if state == "ok")
        return [name for name in self._arms if name not in self._answered]


async def _states(arms: Mapping[str, Arm]) -> dict[str, str]:
    return dict(zip(arms, await asyncio.gather(*map(_state, arms.values())), strict=True))


async def _state(arm: Arm) -> str:
    try:
        async with asyncio.timeout(_SECONDS):
            await arm.check()
    except Exception as error:
        log.warning("health check failed: %s", type(error).__name__)
        return "failed"
    return "ok"
