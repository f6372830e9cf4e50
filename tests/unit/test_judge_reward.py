"""A judge's score as a reward, with a scripted judge; and over HTTP, with a local endpoint."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
from raw_endpoint import completion, http, raw_endpoint
from tiny_rollouts import assistant_tokenizer

from supertiny.errors import NoProgress, PromptRefused
from supertiny.llm.base import Llm
from supertiny.llm.chat import completion_token_ids
from supertiny.llm.config import EndpointConfig
from supertiny.llm.scripted import ScriptedLlm
from supertiny.records import Message, Prompt
from supertiny.tasks.assistant.tools import TOOLS
from supertiny.train.judge_reward import JudgeReward
from supertiny.train.reward_config import RewardJudgeConfig

ENDPOINT = EndpointConfig(base_url="http://127.0.0.1:1/v1", model="large")
LIGHT = Prompt(id="p", messages=[{"role": "user", "content": "kitchen light on"}], reference=[])
BOAT = Prompt(id="b", messages=[{"role": "user", "content": "buy a boat"}], reference=[])


def rewards(script: Callable[[Sequence[Message]], str], answers: Sequence[tuple[str, str]], **settings: object) -> list[float | None]:
    """Rewards of completions (prompt id, text) under a judge that answers by a script."""

    @asynccontextmanager
    async def scripted(_: EndpointConfig) -> AsyncIterator[Llm]:
        yield ScriptedLlm(script)

    config, tokenizer = RewardJudgeConfig(endpoint=ENDPOINT, **settings), assistant_tokenizer()
    reward = JudgeReward([LIGHT, BOAT], TOOLS, tokenizer, config, scripted)
    return reward([completion_token_ids(tokenizer, text) for _, text in answers], [name for name, _ in answers])


@pytest.mark.parametrize(("score", "reward"), [("1", -1), ("2", -0.5), ("3", 0), ("4.5", 0.75), ("5", 1)])
def test_the_scale_of_the_judge_is_spread_over_minus_one_to_one(score: str, reward: float) -> None:
    assert rewards(lambda _: f"Score: {score}", [("p", "on")]) == [reward]


def test_the_judge_sees_the_prompt_the_tools_and_the_answer_without_its_end() -> None:
    seen = []
    rewards(lambda messages: seen.append(messages) or "Score: 5", [("b", "I can't do that.")], rubric="Be kind.")
    system, user = seen[0]
    assert "Be kind." in system["content"]
    assert "buy a boat" in user["content"]
    assert TOOLS[0]["function"]["name"] in user["content"]
    assert "<answer>\nI can't do that.\n</answer>" in user["content"]


def test_each_completion_has_its_own_reward_and_equal_ones_of_a_prompt_are_judged_once() -> None:
    asked = []

    def script(messages: Sequence[Message]) -> str:
        asked.append(messages)
        return "Score: 5" if "<answer>\nyes\n" in messages[1]["content"] else "Score: 1"

    assert rewards(script, [("p", "yes"), ("p", "no"), ("p", "yes"), ("b", "yes")]) == [1, -1, 1, 1]
    assert len(asked) == 3


def test_an_answer_that_the_judge_cannot_grade_or_read_is_worth_least() -> None:
    def script(messages: Sequence[Message]) -> str:
        if "<answer>\nlong\n" in messages[1]["content"]:
            raise PromptRefused("too long")
        return "banana"

    assert rewards(script, [("p", "confusing"), ("p", "long")]) == [-1, -1]


def test_a_judge_that_is_gone_ends_the_training() -> None:
    def script(_: Sequence[Message]) -> str:
        raise NoProgress("gone")

    with pytest.raises(NoProgress, match="gone"):
        rewards(script, [("p", "on")])


def test_a_judge_behind_an_endpoint_is_asked_again_every_step() -> None:
    tokenizer = assistant_tokenizer()

    def reply(body: dict[str, object], times: int) -> bytes:
        return http(200, completion(f"Score: {times + 1}"))

    with raw_endpoint(reply) as url:
        config = RewardJudgeConfig(endpoint=EndpointConfig(base_url=url, model="large"))
        reward = JudgeReward([LIGHT], TOOLS, tokenizer, config)
        assert [reward([completion_token_ids(tokenizer, "on")], ["p"]) for _ in range(2)] == [[-1], [-0.5]]
