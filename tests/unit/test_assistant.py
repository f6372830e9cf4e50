import asyncio
import itertools
import json
import random
from collections.abc import Callable

import pytest

from supertiny.errors import ConfigError, ToolFailure
from supertiny.llm.scripted import ScriptedLlm
from supertiny.records import Call, Completion, Prompt
from supertiny.tasks.assistant.generator import OUT_OF_SCOPE, phrasings_of, prompts, requests
from supertiny.tasks.assistant.grammar import expand
from supertiny.tasks.assistant.home import Home
from supertiny.tasks.assistant.task import AssistantTask
from supertiny.tasks.assistant.teacher import REFUSAL
from supertiny.tasks.assistant.tools import ARGUMENTS, TOOLS
from supertiny.tasks.assistant.values import Split, split_of
from supertiny.tasks.base import Pretrainable
from supertiny.tasks.calls import check_schema, parse, render

TASK = AssistantTask()
CLOSED = {"room", "color", "genre", "mode", "power", "unit", "day", "door", "list"}
KITCHEN = Call(name="set_light", arguments={"room": "kitchen", "power": "on"})


def _prompt(*reference: Call) -> Prompt:
    return Prompt(id="x", messages=[{"role": "user", "content": "turn on the kitchen light"}], reference=list(reference))


def _call(name: str, **arguments: object) -> str:
    return render([Call(name=name, arguments=arguments)])


def _teach(script: Callable[..., str]) -> Completion:
    return asyncio.run(TASK.teach(_prompt(KITCHEN), ScriptedLlm(script)))


def test_no_phrasing_and_no_open_value_of_heldout_occurs_in_train() -> None:
    train = list(itertools.islice(requests("train", 1), 6000))
    heldout = list(itertools.islice(requests("heldout", 0), 3000))
    assert not {request.skeleton for request in train} & {request.skeleton for request in heldout}
    open_values = [{value for request in side for value in request.values if value[0] not in CLOSED} for side in (train, heldout)]
    assert len(open_values[1]) > 500
    assert not open_values[0] & open_values[1]


def _sentences(split: Split) -> set[str]:
    """What a split's patterns say, slots open, without commas and case."""
    rng = random.Random(0)
    patterns = [pattern.partition(" => ")[0].removeprefix("!") for pattern in itertools.chain(*phrasings_of(split).values())]
    return {" ".join(expand(pattern, rng).replace(",", "").lower().split()) for pattern in patterns for _ in range(200)}


def test_no_heldout_pattern_says_what_a_train_pattern_says_and_its_words_are_known() -> None:
    train, heldout = _sentences("train"), _sentences("heldout")
    assert not train & heldout
    assert {word for sentence in heldout for word in sentence.split()} <= {word for sentence in train for word in sentence.split()}


def test_every_reference_passes_its_schema_and_runs_in_the_home() -> None:
    for request in itertools.islice(requests("train", 2), 2000):
        if request.call:
            check_schema([request.call], TOOLS)
            Home().execute(request.call)


def test_every_tool_and_out_of_scope_is_asked_for_in_both_splits() -> None:
    for split in ("train", "heldout"):
        asked = {prompt.reference[0].name if prompt.reference else OUT_OF_SCOPE for prompt in TASK.prompts(split)}
        assert asked == {*ARGUMENTS, OUT_OF_SCOPE}


def test_about_one_prompt_in_eight_is_out_of_scope() -> None:
    outside = sum(prompt.slice == OUT_OF_SCOPE for prompt in TASK.prompts("train"))
    assert 0.1 < outside / 2000 < 0.16


def test_prompts_are_unique_and_the_same_every_time() -> None:
    first = TASK.prompts("heldout")
    assert len(first) == len({prompt.id for prompt in first}) == 2400
    assert first == AssistantTask().prompts("heldout")
    assert first != AssistantTask(seed=1).prompts("heldout")


def test_a_shorter_split_is_the_beginning_of_a_longer_one() -> None:
    assert prompts("train", 50, 0) == prompts("train", 200, 0)[:50]


def test_a_value_belongs_to_one_split_whatever_its_case() -> None:
    assert split_of("Zorbin") == split_of("zorbin")


def test_the_reference_is_accepted_with_full_score() -> None:
    for prompt in TASK.prompts("heldout")[:300]:
        verdict = TASK.verify(prompt, render(prompt.reference or []) or REFUSAL)
        assert verdict.accepted, prompt
        assert verdict.score == 1


@pytest.mark.parametrize(
    ("given", "reference"),
    [
        (_call("set_light", room=" Kitchen", power="on"), KITCHEN),
        (_call("set_light", power="on", room="kitchen", brightness=100), KITCHEN),
        (_call("set_thermostat", temperature=21), Call(name="set_thermostat", arguments={"temperature": 21.0})),
        (_call("set_timer", amount=60, unit="minutes"), Call(name="set_timer", arguments={"amount": 1, "unit": "hours"})),
        (_call("get_weather", day="today"), Call(name="get_weather")),
    ],
)
def test_calls_with_the_same_effect_are_the_same(given: str, reference: Call) -> None:
    assert TASK.verify(_prompt(reference), given).accepted


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('<tool_call>\n{"name"', "malformed"),
        (" ", "malformed"),
        (_call("open_window", room="kitchen"), "no_such_tool"),
        (_call("set_light", room="kitchen", power="dim"), "schema"),
        (_call("set_light", room="kitchen", power="on", mood="good"), "schema"),
        (_call("set_light", room="stable", power="on"), "execution"),
        (_call("set_alarm", time="29:00"), "execution"),
        (_call("set_light", room="office", power="on"), "wrong_arguments"),
        (_call("set_volume", level=10, room="kitchen"), "wrong_call"),
        (REFUSAL, "no_call"),
    ],
)
def test_a_wrong_answer_is_rejected_with_its_reason(text: str, reason: str) -> None:
    verdict = TASK.verify(_prompt(KITCHEN), text)
    assert (verdict.accepted, verdict.reason) == (False, reason)
    assert verdict.evidence


def test_a_call_where_none_was_asked_for_is_rejected() -> None:
    assert TASK.verify(_prompt(), render([KITCHEN])).reason == "call_out_of_scope"
    assert TASK.verify(_prompt(), REFUSAL).accepted


def test_scores_rise_from_malformed_over_schema_and_wrong_to_nearly_right() -> None:
    texts = ["<tool_call>", _call("set_light", room=7), REFUSAL, _call("set_light", room="office", power="on"), render([KITCHEN])]
    scores = [TASK.verify(_prompt(KITCHEN), text).score for text in texts]
    assert scores == sorted(set(scores))
    assert scores[0] == -1
    assert scores[3] == 0  # one of two arguments is right


def test_without_a_reference_a_sound_call_is_accepted() -> None:
    unknown = Prompt(id="x", messages=[], reference=None)
    assert TASK.verify(unknown, render([KITCHEN])).accepted
    assert TASK.verify(unknown, _call("set_light", room="stable", power="on")).reason == "execution"


def test_executing_a_call_changes_the_home_and_nothing_else() -> None:
    home, untouched = Home(), Home()
    home.execute(Call(name="control_blinds", arguments={"room": "Office", "position": 80}))
    assert home.state["blinds"].pop("office") == 80
    assert untouched.state["blinds"].pop("office") == 35
    assert home.state == untouched.state


@pytest.mark.parametrize(
    "call",
    [
        Call(name="set_light", arguments={"room": "kitchen"}),
        Call(name="set_light", arguments={"room": "kitchen", "power": "off", "color": "red"}),
        Call(name="play_music"),
        Call(name="add_to_list", arguments={"list": "shopping", "item": " "}),
        Call(name="execute"),
        Call(name="set_volume", arguments={}),
    ],
)
def test_the_home_refuses_what_makes_no_sense(call: Call) -> None:
    with pytest.raises(ToolFailure):
        Home().execute(call)


def _model(route: str, fill: Callable[[list[dict[str, str]]], str], *answers: str) -> Callable[..., str]:
    """A model that answers each step of the pipeline, and `answers` one after the other, the last one for ever."""
    left = list(answers)

    def script(messages: list[dict[str, str]]) -> str:
        if messages[0]["role"] != "system":
            return left.pop(0) if len(left) > 1 else left[0]
        return route if messages[0]["content"] == "route" else fill(messages)

    return script


def test_the_pipeline_routes_fills_and_answers() -> None:
    answer = _teach(_model("set_light", lambda _: '{"room": "kitchen", "power": "on"}', render([KITCHEN])))
    assert answer.text == render([KITCHEN])
    assert answer.usage.calls == 3  # no score: the answer's own tokens are kept


def test_the_pipeline_repairs_once_with_the_error() -> None:
    def fill(messages: list[dict[str, str]]) -> str:
        repairing = messages[-1] == {"role": "tool", "content": "no such room: stable"}
        return json.dumps({"room": "kitchen" if repairing else "stable", "power": "on"})

    answer = _teach(_model("set_light", fill, render([KITCHEN])))
    assert answer.text == render([KITCHEN])
    assert answer.usage.calls == 4


def test_a_value_that_is_not_in_the_request_is_repaired() -> None:
    prompt = Prompt(id="x", messages=[{"role": "user", "content": "Put milk on my shopping list"}])
    milk = _call("add_to_list", list="shopping", item="Milk")

    def fill(messages: list[dict[str, str]]) -> str:
        item = "Milk" if messages[-1]["content"] == "not in the request: silk" else "silk"
        return json.dumps({"list": "shopping", "item": item})

    answer = asyncio.run(TASK.teach(prompt, ScriptedLlm(_model("add_to_list", fill, milk))))
    assert (answer.text, answer.usage.calls) == (milk, 4)


def test_where_filling_and_answering_differ_the_filled_call_is_scored() -> None:
    answer = _teach(_model("set_light", lambda _: '{"room": "kitchen", "power": "on"}', _call("set_light", room="kitchen", power="off")))
    assert answer.text == render([KITCHEN])
    assert answer.usage.calls == 4  # route, fill, answer, score


def test_where_the_filled_call_fails_its_checks_the_answer_is_taken_unless_it_fails_too() -> None:
    in_the_stable = _call("set_light", room="stable", power="on")
    for answered, taken in ((render([KITCHEN]), render([KITCHEN])), (_call("set_light", room="barn", power="on"), in_the_stable)):
        assert _teach(_model("set_light", lambda _: '{"room": "stable", "power": "on"}', answered)).text == taken


def test_the_pipeline_refuses_what_no_tool_can_do() -> None:
    assert _teach(_model("none", lambda _: "", REFUSAL)).text == REFUSAL


@pytest.mark.parametrize("nonsense", ["", "set_lights", "{", "[1]", '{"room": 3}', "\udcff"])
def test_nonsense_from_the_model_still_gives_a_judgeable_answer(nonsense: str) -> None:
    for routed in ("set_light", nonsense):
        answer = _teach(lambda messages, routed=routed: routed if messages[0]["content"] == "route" else nonsense)
        assert not TASK.verify(_prompt(KITCHEN), answer.text).accepted


def test_the_home_is_not_entered_by_a_private_name() -> None:
    with pytest.raises(ToolFailure, match="no such tool"):
        Home().execute(Call(name="note", arguments={"kind": "x"}))


def test_wrong_options_are_config_errors() -> None:
    with pytest.raises(ConfigError):
        AssistantTask(train_prompts=0)
    with pytest.raises(ConfigError, match="no split test"):
        TASK.prompts("test")


def test_the_base_learns_another_assistant_and_the_teacher_every_step() -> None:
    assert isinstance(TASK, Pretrainable)
    teacher = [messages for messages, _ in itertools.islice(TASK.pretraining_examples("teacher", 0), 500)]
    steps = {messages[0]["content"].split()[0] for messages in teacher if messages[0]["role"] == "system"}
    assert steps == {"route", "fill"}
    assert any(messages[-1]["role"] == "tool" for messages in teacher)
    base = [(messages, answer) for messages, answer in itertools.islice(TASK.pretraining_examples("base", 0), 500)]
    assert all(len(messages) == 1 for messages, _ in base)
    names = {call.name for _, answer in base for call in parse(answer)}
    assert len(names & set(ARGUMENTS)) == len(names - set(ARGUMENTS)) == 7


def test_pretraining_repeats_for_a_seed() -> None:
    first, second = (list(itertools.islice(TASK.pretraining_examples("teacher", 3), 50)) for _ in range(2))
    assert first == second


def test_noise_changes_how_a_request_is_said_and_not_what_it_asks_for() -> None:
    patterns = {"set_light": ["turn on the {room} light => power=on"]}
    noisy = list(itertools.islice(requests("train", 0, patterns, noise=1.0), 300))
    assert all(call and call.arguments.keys() == {"room", "power"} for call in (request.call for request in noisy))
    assert any("turn on {room} light" in request.skeleton for request in noisy)
    assert all("turn on" in request.skeleton for request in noisy)
    assert len({request.skeleton for request in noisy}) > 250
