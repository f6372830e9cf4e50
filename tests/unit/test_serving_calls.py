"""What travels with a call, what is tried again, and probes that many share."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from ray.exceptions import RayActorError
from tests.fake_arms import FakeArm

from supertiny.errors import ArmBusy
from supertiny.serving.call import CallContext, current_call, in_time, within
from supertiny.serving.probes import Probes
from supertiny.serving.retry import answered, streamed

LATE = object()
"""An item that takes a minute."""


class Response:
    """A call of a replica that dies, or gives items."""

    def __init__(self, items: list[Any], seconds: float = 0.0, queued_seconds: float = 0.0) -> None:
        self.cancelled = False
        self._queued_seconds = queued_seconds
        self._items = items
        self._seconds = seconds

    def cancel(self) -> None:
        self.cancelled = True

    def __await__(self) -> Any:
        return self._first().__await__()

    async def _to_object_ref(self) -> None:
        await asyncio.sleep(self._queued_seconds)

    _to_object_ref_gen = _to_object_ref

    async def _first(self) -> Any:
        async for item in self:
            return item

    async def __aiter__(self) -> AsyncIterator[Any]:
        for item in self._items:
            await asyncio.sleep(60 if item is LATE else self._seconds)
            if item is None:
                raise RayActorError
            yield item


def replicas(*responses: Response) -> Callable[[], Response]:
    """One after the other is asked."""
    waiting = iter(responses)
    return lambda: next(waiting)


async def collect(items: AsyncIterator[Any], seen: list[Any] | None = None) -> list[Any]:
    """All of them; those before an error are in `seen`."""
    seen = [] if seen is None else seen
    async for item in items:
        seen.append(item)
    return seen


def test_another_replica_is_asked_where_one_dies() -> None:
    assert asyncio.run(answered(replicas(Response([None]), Response([None]), Response(["yes"])))) == "yes"
    assert asyncio.run(collect(streamed(replicas(Response([None]), Response(["a", "b"]))))) == ["a", "b"]


def test_a_stream_that_has_begun_is_not_begun_again() -> None:
    seen: list[Any] = []
    with pytest.raises(RayActorError):
        asyncio.run(collect(streamed(replicas(Response(["a", None]), Response(["b"]))), seen))
    assert seen == ["a"]


def test_where_every_replica_dies_the_caller_is_told() -> None:
    with pytest.raises(RayActorError):
        asyncio.run(answered(replicas(*[Response([None]) for _ in range(4)])))


def test_a_call_that_no_replica_takes_in_time_is_refused_and_given_up() -> None:
    for work in (answered, lambda call, seconds: collect(streamed(call, seconds))):
        late, soon = Response(["a"], queued_seconds=60), Response(["a"], queued_seconds=0.001)
        with pytest.raises(ArmBusy, match=r"no replica of the arm had a place within 0\.02 s"):
            asyncio.run(work(lambda late=late: late, 0.02))
        assert list(asyncio.run(work(lambda soon=soon: soon, 30.0))) == ["a"]
        assert (late.cancelled, soon.cancelled) == (True, False)


def test_a_caller_that_gives_up_cancels_the_work() -> None:
    slow, stream, left = Response([LATE]), Response([LATE]), Response(["a", "b"])

    async def give_up() -> None:
        for work in (answered(lambda: slow), collect(streamed(lambda: stream))):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await work
        pieces = streamed(lambda: left)
        await anext(pieces)
        await pieces.aclose()

    asyncio.run(give_up())
    assert (slow.cancelled, stream.cancelled, left.cancelled) == (True, True, True)


def test_the_time_left_shrinks_on_its_way_and_never_below_nothing() -> None:
    async def hop() -> tuple[float, float, str | None]:
        with within(CallContext(seconds=0.05, traceparent="00-1")):
            first = current_call()
            await asyncio.sleep(0.02)
            with within(first):
                await asyncio.sleep(0.1)
                return first.seconds, current_call().seconds, current_call().traceparent

    first, last, trace = asyncio.run(hop())
    assert 0 < first <= 0.05
    assert (last, trace) == (0.0, "00-1")
    assert current_call().seconds > 60  # what no request made has time


def test_items_that_come_too_late_are_not_waited_for() -> None:
    async def late(seen: list[Any]) -> None:
        await collect(in_time(aiter(Response([1, LATE])), 0.1), seen)

    seen: list[Any] = []
    with pytest.raises(TimeoutError):
        asyncio.run(late(seen))
    assert seen == [1]


def test_many_probes_make_one_token() -> None:
    arm = FakeArm(seconds=0.01)

    async def many() -> list[dict[str, str]]:
        probes = Probes({"student": arm})
        return await asyncio.gather(*(probes.alive() for _ in range(50)))

    assert asyncio.run(many()) == [{"student": "ok"}] * 50
    assert len(arm.samplings) == 1
