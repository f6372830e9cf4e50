import pytest
from tiny_rollouts import assistant_tokenizer, gold_rollouts

from supertiny.llm.chat import completion_token_ids, prompt_token_ids
from supertiny.records import Call, Prompt, Rollout
from supertiny.tasks.assistant.task import AssistantTask
from supertiny.tasks.calls import render
from supertiny.train.rewards import VerifierReward
from supertiny.train.rl import render_prompts


@pytest.fixture(scope="module")
def rollouts() -> list[Rollout]:
    return gold_rollouts(assistant_tokenizer(), 8, group_size=2)


def reward_of(prompt: Prompt) -> VerifierReward:
    return VerifierReward(AssistantTask(), [prompt], assistant_tokenizer())


LIGHT = Prompt(
    id="p",
    messages=[{"role": "user", "content": "kitchen light on"}],
    reference=[Call(name="set_light", arguments={"room": "kitchen", "power": "on"})],
)


def test_a_reward_is_the_verifiers_score_of_the_decoded_completion() -> None:
    tokenizer, task = assistant_tokenizer(), AssistantTask()
    right = render(LIGHT.reference or [])
    near = render([Call(name="set_light", arguments={"room": "kitchen", "power": "off"})])
    texts = [right, near, "I can't do that.", "<tool_call>\n{"]
    scores = reward_of(LIGHT)([completion_token_ids(tokenizer, text) for text in texts], ["p"] * 4, prompts=None, log_metric=None)
    assert scores == [task.verify(LIGHT, text).score for text in texts]
    assert scores[0] == 1
    assert scores[3] == -1
    assert 1 > scores[1] > scores[3]


def test_a_completion_that_was_cut_is_judged_as_it_stands() -> None:
    tokenizer = assistant_tokenizer()
    whole = completion_token_ids(tokenizer, render(LIGHT.reference or []))
    assert reward_of(LIGHT).score(whole, "p") == reward_of(LIGHT).score(whole[:-1], "p") == 1
    assert reward_of(LIGHT).score(whole[:-4], "p") == -1
    assert reward_of(LIGHT).score([], "p") == -1


def test_every_prompt_is_rendered_once_as_it_is_served(rollouts: list[Rollout]) -> None:
    tokenizer = assistant_tokenizer()
    prompts = render_prompts(rollouts, tokenizer)
    assert [prompt.prompt.id for prompt in prompts] == list(dict.fromkeys(rollout.prompt.id for rollout in rollouts))
    for prompt in prompts:
        served = prompt_token_ids(tokenizer, prompt.prompt.messages, AssistantTask().tools)
        assert tokenizer(prompt.text)["input_ids"] == served


def test_a_prompt_without_reference_cannot_be_judged_and_is_left_out(rollouts: list[Rollout]) -> None:
    unknown = rollouts[0].model_copy(update={"prompt": rollouts[0].prompt.model_copy(update={"reference": None})})
    assert render_prompts([unknown], assistant_tokenizer()) == []
