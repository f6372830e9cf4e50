"""An engine's busy time, shared among the calls in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supertiny.errors import PromptRefused
from supertiny.llm.base import pipeline_step
from supertiny.llm.config import TokenPriceConfig
from supertiny.llm.scripted import ScriptedLlm
from supertiny.records import Completion, Message, Usage
from supertiny.rollout.meter import Clock, Meter

LIGHT_ON = [{"role": "user", "content": "light on"}]


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
        await meter.complete(LIGHT_ON, n=3)
        await meter.score(LIGHT_ON, "on")

    asyncio.run(calls())
    used = meter.total.usage
    assert (used.calls, used.prompt_tokens, used.completion_tokens) == (4, 8, 7)


def test_calls_count_under_the_pipeline_step_that_they_are_made_in_and_else_as_unnamed() -> None:
    meter = Meter(ScriptedLlm(lambda _: "on it"), Clock(), price=TokenPriceConfig(prompt_usd=1e6, completion_usd=0))

    async def calls() -> None:
        with pipeline_step("route"):
            await asyncio.gather(meter.complete(LIGHT_ON), meter.complete(LIGHT_ON))
            with pipeline_step("fill"):
                await meter.complete(LIGHT_ON)
            await meter.score(LIGHT_ON, "on")
        await meter.complete(LIGHT_ON)

    asyncio.run(calls())
    assert {name: step.usage.calls for name, step in meter.steps.items()} == {"route": 3, "fill": 1, "unnamed": 1}
    assert {name: step.endpoint_usd for name, step in meter.steps.items()} == {"route": 6, "fill": 2, "unnamed": 2}


@pytest.mark.parametrize("name", ["", "Route", "filters.judge", "p1/0", "a" * 41])
def test_a_pipeline_steps_name_is_a_word_and_no_id_of_a_prompt(name: str) -> None:
    with pytest.raises(ValueError, match="one name a step, not one a prompt"), pipeline_step(name):
        pass


class ImpatientLlm(ScriptedLlm):
    """Cancelled, it says what it had used."""

    async def complete(self, messages: Sequence[Message], **options: object) -> list[Completion]:
        """Never."""
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            raise asyncio.CancelledError(Usage(prompt_tokens=2, completion_tokens=1)) from None
        return []


def test_a_call_that_nobody_waits_for_any_more_is_paid_for_where_the_engine_says_what_it_took() -> None:
    meter = Meter(ImpatientLlm(lambda _: ""), Clock())

    async def calls() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await meter.complete(LIGHT_ON)

    asyncio.run(calls())
    assert meter.total.usage == Usage(prompt_tokens=2, completion_tokens=1)


def test_a_call_that_fails_ends_too() -> None:
    def refuse(_: Sequence[Message]) -> str:
        raise PromptRefused("too long")

    now = [0.0]
    clock = Clock(lambda: now[0])
    with pytest.raises(PromptRefused):
        asyncio.run(Meter(ScriptedLlm(refuse), clock).complete([]))
    now[0] = 100.0
    assert clock.begin() == 0.0  # nobody was in flight meanwhile
