import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supertiny.errors import MalformedCall
from supertiny.records import Call
from supertiny.tasks.calls import (
    argument_f1,
    argument_similarity,
    call_schema,
    check_schema,
    grade,
    matches,
    most_common,
    name_overlap,
    parse,
    parse_body,
    render,
)

LIGHT = Call(name="set_light", arguments={"room": "kitchen", "power": "on"})
TIMER = Call(name="set_timer", arguments={"minutes": 7})
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "set_timer",
            "parameters": {"type": "object", "properties": {"minutes": {"type": "integer"}}, "additionalProperties": False},
        },
    }
]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
calls = st.builds(Call, name=st.text(min_size=1), arguments=st.dictionaries(st.text(), values, max_size=3))


def _markup_free(call: Call) -> bool:
    return "tool_call>" not in call.model_dump_json()


@given(st.lists(calls.filter(_markup_free), max_size=3))
def test_what_is_rendered_is_parsed_again(some: list[Call]) -> None:
    assert parse(render(some)) == some


def test_a_call_is_written_as_hermes_and_qwen_write_it() -> None:
    assert render([TIMER]) == '<tool_call>\n{"name": "set_timer", "arguments": {"minutes": 7}}\n</tool_call>'


def test_the_schema_of_a_call_takes_what_its_tool_takes_and_nothing_else() -> None:
    import jsonschema

    room = {"type": "function", "function": {"name": "dim", "parameters": {"type": "object", "required": ["room"]}}}
    takes = jsonschema.Draft202012Validator(call_schema([*TOOLS, room])).is_valid
    bodies = [
        {"name": "set_timer", "arguments": {"minutes": 7}},
        {"name": "dim", "arguments": {"room": "hall"}},
        {"name": "set_timer", "arguments": {"minutes": "7"}},
        {"name": "dim", "arguments": {}},
        {"name": "set_light", "arguments": {}},
        {"name": "set_timer", "arguments": {}, "why": "because"},
    ]
    assert [takes(body) for body in bodies] == [True, True, False, False, False, False]
    assert call_schema(TOOLS)["properties"]["name"] == {"const": "set_timer"}
    assert parse_body('{"name": "set_timer", "arguments": {"minutes": 7}}') == TIMER


def test_text_around_a_call_does_not_hide_it() -> None:
    assert parse(f"Sure.\n{render([TIMER])}\nDone.") == [TIMER]


def test_plain_text_has_no_calls() -> None:
    assert parse("I can't do that.") == []


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>\n{}",
        "</tool_call>",
        "<tool_call>\nnot json\n</tool_call>",
        '<tool_call>\n{"name": "f"}\n</tool_call>',
        '<tool_call>\n{"name": "f", "arguments": []}\n</tool_call>',
        '<tool_call>\n{"name": 1, "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "f", "arguments": {}, "more": 1}\n</tool_call>',
        '<tool_call>\n{"name": "f", "arguments": {"a": "\\ud83d"}}\n</tool_call>',
        '<tool_call>\n{"name": "f", "arguments": {"a": NaN}}\n</tool_call>',
        '<tool_call>\n{"name": "f", "arguments": {"a": ' + "9" * 5000 + "}}\n</tool_call>",
        *(
            f'<tool_call>\n{{"name": "f", "arguments": {{"a": {"[" * levels}{"]" * levels}}}}}\n</tool_call>'
            for levels in (100, 600, 100_000)
        ),
    ],
)
def test_what_is_not_a_well_formed_call_is_malformed(text: str) -> None:
    with pytest.raises(MalformedCall):
        parse(text)


def test_a_call_that_is_nested_within_reason_is_read() -> None:
    assert len(parse(render([Call(name="f", arguments={"a": json.loads("[" * 90 + "]" * 90)})]))) == 1


def test_order_case_and_outer_space_do_not_matter_in_a_match() -> None:
    shouted = Call(name="set_light", arguments={"power": "ON ", "room": " Kitchen"})
    assert matches([TIMER, shouted], [LIGHT, TIMER])


def test_seven_is_seven_point_nought_and_true_is_not_one() -> None:
    assert matches([TIMER], [Call(name="set_timer", arguments={"minutes": 7.0})])
    assert not matches([Call(name="f", arguments={"x": True})], [Call(name="f", arguments={"x": 1})])
    assert argument_f1({"x": True}, {"x": 1}) == 0


def test_a_missing_or_doubled_call_is_no_match() -> None:
    assert not matches([LIGHT], [LIGHT, TIMER])
    assert not matches([LIGHT, LIGHT], [LIGHT])


@given(st.lists(calls, min_size=0, max_size=3))
def test_a_match_has_grade_one(some: list[Call]) -> None:
    assert grade(some, list(reversed(some))) == 1


def test_grade_counts_right_arguments_and_superfluous_calls() -> None:
    half_right = Call(name="set_light", arguments={"room": "kitchen", "power": "off"})
    assert grade([half_right], [LIGHT]) == 0.5
    assert grade([LIGHT, TIMER], [LIGHT]) == 0.5
    assert grade([TIMER], [LIGHT]) == 0
    assert grade([], [LIGHT]) == 0


def test_argument_f1_is_two_shared_over_all() -> None:
    assert argument_f1({"a": 1, "b": 2}, {"a": 1}) == pytest.approx(2 / 3)
    assert argument_f1({}, {}) == 1


def test_schema_names_the_tool_and_what_it_refuses() -> None:
    check_schema([TIMER], TOOLS)
    with pytest.raises(MalformedCall, match="no such tool: set_light"):
        check_schema([LIGHT], TOOLS)
    with pytest.raises(MalformedCall, match="set_timer: 'seven' is not of type 'integer'"):
        check_schema([Call(name="set_timer", arguments={"minutes": "seven"})], TOOLS)


def test_texts_with_the_same_calls_vote_together() -> None:
    one, same, other = (render([Call(name="play", arguments=a)]) for a in ({"a": "x", "b": "y"}, {"b": "Y", "a": "x"}, {"a": "x"}))
    assert most_common([other, one, same]) == one
    assert most_common(["no", "<tool_call>", "never"]) == "no"


@given(st.lists(calls, max_size=3), st.lists(calls, max_size=3))
def test_a_grade_is_overlap_of_names_times_similarity_of_arguments(some: list[Call], others: list[Call]) -> None:
    assert grade(some, others) == name_overlap(some, others) * argument_similarity(some, others)
    assert name_overlap(some, others) == name_overlap(others, some)


def test_two_of_three_names_in_common_overlap_by_two_thirds() -> None:
    assert name_overlap([TIMER, LIGHT], [LIGHT, TIMER, TIMER]) == pytest.approx(2 / 3)
