"""An engine's busy time, shared among the calls in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supertiny.errors import PromptRefused
from supertiny.llm.scripted import ScriptedLlm
from supertiny.records import Message
from supertiny.rollout.meter import Clock, Meter


def test_two_calls_at_once_share_the_time_and_idle_time_is_nobodys() -> None:
    now = [0.0]
    clock = Clock(lambda: now[0])
    first = clock.begin()
    now[0] = 4.0
    second = clock.begin()
    now[0] = 6.0
    assert clock.end(first) == 5.0  # 4 alone, 1 of the 2 that both were there
    now[0] = 7.0
    assert clock.end(second) == 2.0
    now[0] = 100.0
    third = clock.begin()
    now[0] = 101.0
    assert clock.end(third) == 1.0


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), min_size=1, max_size=10))
def test_the_shares_add_up_to_the_time_in_which_any_call_was_in_flight(calls: list[tuple[int, int]]) -> None:
    now = [0.0]
    clock = Clock(lambda: now[0])
    events = sorted(
        [(begin, 1, at) for at, (begin, _) in enumerate(calls)] + [(begin + long, 0, at) for at, (begin, long) in enumerate(calls)]
    )
    begun, shares = {}, []
    for when, is_begin, at in events:
        now[0] = float(when)
        if is_begin:
            begun[at] = clock.begin()
        else:
            shares.append(clock.end(begun[at]))
    busy = len({second for begin, long in calls for second in range(begin, begin + long)})
    assert sum(shares) == pytest.approx(busy)


def test_a_meter_adds_up_the_usage_of_all_completions_and_scores() -> None:
    meter = Meter(ScriptedLlm(lambda _: "on it"), Clock())

    async def calls() -> None:
        await meter.complete([{"role": "user", "content": "light on"}], n=3)
        await meter.score([{"role": "user", "content": "light on"}], "on")

    asyncio.run(calls())
    assert (meter.usage.calls, meter.usage.prompt_tokens, meter.usage.completion_tokens) == (4, 8, 7)


def test_a_call_that_fails_ends_too() -> None:
    def refuse(_: Sequence[Message]) -> str:
        raise PromptRefused("too long")

    now = [0.0]
    clock = Clock(lambda: now[0])
    with pytest.raises(PromptRefused):
        asyncio.run(Meter(ScriptedLlm(refuse), clock).complete([]))
    now[0] = 100.0
    assert clock.begin() == 0.0  # nobody was in flight meanwhile
