"""What travels with a request through all calls made for it: the time that is left, and its trace."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from supertiny.records import Record

Item = TypeVar("Item")
_UNBOUNDED_SECONDS = 3600.0
"""For calls that no request made, such as probes of the deployment itself."""


class CallContext(Record):
    """Goes from process to process as seconds, since their clocks differ."""

    seconds: float
    """Left until the deadline, at the time of sending."""
    traceparent: str | None = None
    """W3C trace context of the caller's span; None where nothing is traced."""


_CURRENT: ContextVar[tuple[float, str | None]] = ContextVar("call")


@contextmanager
def within(call: CallContext) -> Iterator[None]:
    """Calls made inside have this long, and belong to this trace."""
    token = _CURRENT.set((time.monotonic() + call.seconds, call.traceparent))
    try:
        yield
    finally:
        _CURRENT.reset(token)


def current_call() -> CallContext:
    """What a call made here passes on; `seconds` is 0 past the deadline."""
    deadline, traceparent = _CURRENT.get((time.monotonic() + _UNBOUNDED_SECONDS, None))
    return CallContext(seconds=max(deadline - time.monotonic(), 0.0), traceparent=traceparent)


async def in_time(items: AsyncIterator[Item], seconds: float) -> AsyncIterator[Item]:
    """The items that come within so many seconds from now; then TimeoutError."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        async with asyncio.timeout_at(deadline):
            try:
                item = await anext(items)
            except StopAsyncIteration:
                return
        yield item
