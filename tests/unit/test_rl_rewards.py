"""Rewards against numbers worked out by hand."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_rollouts import assistant_tokenizer, gold_rollouts

from supertiny.llm.chat import completion_token_ids, prompt_token_ids
from supertiny.records import Call, Prompt, Rollout
from supertiny.tasks.assistant.task import AssistantTask
from supertiny.tasks.calls import render
from supertiny.train.prompts import held_out, render_prompts
from supertiny.train.rewards import REWARDS, Answer, TrlReward

MAX_TOKENS = 60
ON = Call(name="set_light", arguments={"room": "kitchen", "power": "on"})
OFF = Call(name="set_light", arguments={"room": "kitchen", "power": "off"})
TIMER = Call(name="set_timer", arguments={"minutes": 7})
LIGHT = Prompt(id="p", messages=[{"role": "user", "content": "kitchen light on"}], reference=[ON])
NOTHING = Prompt(id="n", messages=[{"role": "user", "content": "buy a boat"}], reference=[])
MALFORMED = "<tool_call>\n{"


@pytest.fixture(scope="module")
def rollouts() -> list[Rollout]:
    return gold_rollouts(assistant_tokenizer(), 8, group_size=2)


def worth(name: str, text: str, prompt: Prompt = LIGHT, **tokens: int) -> float:
    answer = Answer(prompt=prompt, text=text, **{"num_tokens": 20, "reference_tokens": 20, "max_tokens": MAX_TOKENS, **tokens})
    return REWARDS[name](answer, AssistantTask())


def reward_of(prompt: Prompt, name: str = "verifier") -> TrlReward:
    return TrlReward(name, AssistantTask(), [prompt], assistant_tokenizer(), MAX_TOKENS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [(render([ON]), 1), ("I can't do that.", 1), (render([Call(name="fly")]), 0), (MALFORMED, -1), (" ", -1)],
    ids=["sound", "plain text", "no such tool", "malformed", "empty"],
)
def test_format_is_one_for_calls_that_the_tools_take(text: str, expected: float) -> None:
    assert worth("format", text) == expected


@pytest.mark.parametrize(
    ("given_calls", "expected"),
    [([ON], 1), ([OFF], 1), ([ON, TIMER], 0), ([ON, OFF], 0), ([TIMER], -1)],
    ids=["the same", "other arguments", "one too many", "one twice", "another"],
)
def test_calls_is_the_overlap_of_names_spread_over_minus_one_to_one(given_calls: list[Call], expected: float) -> None:
    assert worth("calls", render(given_calls)) == expected  # 2 x IoU - 1, IoU 1, 1, 1/2, 1/2, 0


@pytest.mark.parametrize(
    ("given_calls", "expected"),
    [([ON], 1), ([OFF], 0), ([OFF, ON], 0), ([Call(name="set_light", arguments={"power": "on"})], 1 / 3), ([TIMER], -1)],
    ids=["the same", "one of two", "the first pairs", "one is missing", "another"],
)
def test_arguments_is_their_f1_spread_over_minus_one_to_one(given_calls: list[Call], expected: float) -> None:
    assert worth("arguments", render(given_calls)) == pytest.approx(expected)  # 2 x F1 - 1, F1 1, 1/2, 1/2, 2/3, 0


@pytest.mark.parametrize("name", ["calls", "arguments"])
def test_no_call_is_right_where_none_is_to_be_made_and_malformed_ones_are_always_wrong(name: str) -> None:
    assert worth(name, "I can't do that.", NOTHING) == 1
    assert worth(name, "I can't do that.") == -1
    assert worth(name, render([ON]), NOTHING) == -1
    assert worth(name, MALFORMED) == worth(name, "") == -1


def test_accepted_is_binary_where_the_verifier_grades() -> None:
    assert (worth("accepted", render([ON])), worth("accepted", render([OFF]))) == (1, -1)
    assert worth("verifier", render([ON])) == 1
    assert -1 < worth("verifier", render([OFF])) < 1


@pytest.mark.parametrize(("tokens", "expected"), [(12, 0), (20, 0), (30, -0.25), (40, -0.5), (60, -1)])
def test_length_falls_from_the_references_tokens_to_where_a_completion_is_cut(tokens: int, expected: float) -> None:
    assert worth("length", render([ON]), num_tokens=tokens) == expected


def test_length_says_nothing_where_nothing_is_to_be_called() -> None:
    assert worth("length", "I can't do that.", NOTHING, num_tokens=50, reference_tokens=1) == 0


@given(st.sampled_from(sorted(REWARDS)), st.text() | st.just(MALFORMED), st.integers(0, MAX_TOKENS), st.booleans())
def test_a_reward_is_between_minus_one_and_one(name: str, text: str, tokens: int, something: bool) -> None:
    assert -1 <= worth(name, text, LIGHT if something else NOTHING, num_tokens=tokens) <= 1


def test_trl_gets_a_number_for_every_completion_under_the_rewards_name() -> None:
    tokenizer, task = assistant_tokenizer(), AssistantTask()
    texts = [render([ON]), render([OFF]), "I can't do that.", MALFORMED]
    extra: dict[str, Any] = {"prompts": None, "log_metric": None}
    scores = reward_of(LIGHT)([completion_token_ids(tokenizer, text) for text in texts], ["p"] * 4, **extra)
    assert scores == [task.verify(LIGHT, text).score for text in texts]
    assert reward_of(LIGHT, "calls").__name__ == "calls"


def test_a_completion_that_was_cut_is_judged_as_it_stands() -> None:
    whole = completion_token_ids(assistant_tokenizer(), render([ON]))
    assert reward_of(LIGHT).score(whole, "p") == reward_of(LIGHT).score(whole[:-1], "p") == 1
    assert reward_of(LIGHT).score(whole[:-4], "p") == -1
    assert reward_of(LIGHT).score([], "p") == -1


def test_the_reference_as_it_is_written_has_no_length_too_many() -> None:
    whole = completion_token_ids(assistant_tokenizer(), render([ON]))
    assert reward_of(LIGHT, "length").score(whole, "p") == 0
    assert reward_of(LIGHT, "length").score([*whole, whole[0]], "p") == pytest.approx(-1 / (MAX_TOKENS - len(whole)))


def test_every_prompt_is_rendered_once_as_it_is_served(rollouts: list[Rollout]) -> None:
    tokenizer = assistant_tokenizer()
    prompts = render_prompts(rollouts, tokenizer)
    assert [prompt.prompt.id for prompt in prompts] == list(dict.fromkeys(rollout.prompt.id for rollout in rollouts))
    for prompt in prompts:
        served = prompt_token_ids(tokenizer, prompt.prompt.messages, AssistantTask().tools)
        assert tokenizer(prompt.text)["input_ids"] == served


def test_a_prompt_is_held_out_by_its_id_alone_and_by_any_larger_fraction() -> None:
    names = [f"prompt {number}" for number in range(2000)]
    few, more = ({name for name in names if held_out(name, fraction)} for fraction in (0.1, 0.3))
    assert few < more
    assert len(few) == pytest.approx(200, abs=60)
    assert len(more) == pytest.approx(600, abs=90)
    assert not any(held_out(name, 0) for name in names)
