"""An answer's text in OpenAI's shapes: the same however it is cut, and back again."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable

from hypothesis import given
from hypothesis import strategies as st

from supertiny.records import Call, Completion, Usage
from supertiny.serving.stream import DeltaWriter, JsonObject, Piece, answer_text, completion_body, events
from supertiny.serving.traffic import joined
from supertiny.tasks.calls import parse, render

LIGHT = Call(name="set_light", arguments={"room": "küche", "level": 3, "tags": ["</b>", "{}"]})
STOP = Call(name="stop", arguments={})
texts = st.lists(
    st.sampled_from(
        [render([LIGHT]), render([STOP]), "<tool_call>", "</tool_call>", "<tool_call>oops</tool_call>", "Sure. ", "<", "\n", " x"]
    ),
    max_size=6,
)


def message_of(text: str) -> JsonObject:
    """The message of a text that came whole."""
    message: JsonObject = completion_body("student", Completion(text=text))["choices"][0]["message"]
    return message


def streamed(pieces: Iterable[str], include_usage: bool = False) -> list[JsonObject]:
    """The events of a text that came in pieces."""

    async def source() -> AsyncIterator[Piece]:
        for piece in pieces:
            yield Piece(text=piece)
        yield Piece(finish_reason="stop", usage=Usage(prompt_tokens=7, cached_tokens=2, completion_tokens=5))

    async def collect() -> list[str]:
        return [event async for event in events("student", source(), include_usage)]

    lines = [event.removeprefix("data: ").strip() for event in asyncio.run(collect())]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def message_from(stream: list[JsonObject]) -> JsonObject:
    """What a client makes of the events."""

    async def lines() -> AsyncIterator[str]:
        for event in stream:
            yield f"data: {json.dumps(event)}"
        yield "data: [DONE]"

    return asyncio.run(joined(lines()))


def without_ids(message: JsonObject) -> tuple[str | None, list[JsonObject]]:
    """Content and functions: ids are drawn afresh each time."""
    return message.get("content") or None, [call["function"] for call in message.get("tool_calls") or []]


@given(texts, st.integers(1, 7))
def test_a_stream_adds_up_to_the_whole_answer_wherever_it_is_cut(parts: list[str], size: int) -> None:
    text = "".join(parts)
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    assert without_ids(message_from(streamed(pieces))) == without_ids(message_of(text))


def test_calls_have_an_id_a_type_and_arguments_as_json_text() -> None:
    (call,) = message_of(render([LIGHT]))["tool_calls"]
    assert call["id"].startswith("call_")
    assert call["type"] == "function"
    assert call["function"]["name"] == "set_light"
    assert json.loads(call["function"]["arguments"]) == LIGHT.arguments


def test_calls_come_back_as_they_were_written() -> None:
    assert parse(answer_text(message_of(render([LIGHT, STOP])))) == [LIGHT, STOP]


def test_an_answer_with_calls_alone_has_no_content_and_ends_with_tool_calls() -> None:
    body = completion_body("teacher", Completion(text=render([STOP])))
    assert body["choices"][0]["message"]["content"] is None
    assert body["choices"][0]["finish_reason"] == "tool_calls"


def test_plain_text_is_content_and_ends_with_stop() -> None:
    body = completion_body("teacher", Completion(text="I can't do that."))
    assert body["choices"][0] == {
        "index": 0,
        "message": {"role": "assistant", "content": "I can't do that."},
        "logprobs": None,
        "finish_reason": "stop",
    }


def test_an_answer_cut_off_at_max_tokens_says_length() -> None:
    assert completion_body("student", Completion(text="Su", finish_reason="length"))["choices"][0]["finish_reason"] == "length"


def test_a_malformed_call_stays_text_so_that_a_verifier_sees_it() -> None:
    text = '<tool_call>{"name": 3}</tool_call>'
    assert message_of(text) == {"role": "assistant", "content": text}
    assert answer_text(message_of(text)) == text


def test_nothing_of_a_call_goes_out_before_its_block_is_closed() -> None:
    writer = DeltaWriter()
    assert writer.feed("Sure. <tool_call>\n") == [{"content": "Sure."}]
    assert writer.feed('{"name": "stop", "arguments": {}}') == []
    (delta,) = writer.feed("</tool_call>")
    assert delta["tool_calls"][0]["function"] == {"name": "stop", "arguments": "{}"}


def test_text_is_not_held_back_by_a_lone_angle_bracket_that_opens_nothing() -> None:
    writer = DeltaWriter()
    assert writer.feed("a <") == [{"content": "a"}]
    assert writer.feed("b") == [{"content": " <b"}]


def test_several_calls_are_numbered_in_order() -> None:
    deltas = [event["choices"][0]["delta"] for event in streamed([render([LIGHT, STOP])])]
    assert [call["index"] for delta in deltas for call in delta.get("tool_calls", [])] == [0, 1]


def test_usage_comes_in_an_event_without_choices_only_when_asked_for() -> None:
    asked = streamed(["hi"], include_usage=True)
    assert asked[-1]["choices"] == []
    assert asked[-1]["usage"]["total_tokens"] == 12
    assert asked[-1]["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
    assert all(event["usage"] is None for event in asked[:-1])
    assert all("usage" not in event for event in streamed(["hi"]))
