"""The older completions endpoint, beside the one for chats."""

import json

from tests.fake_arms import KITCHEN, FakeArm, Served


def test_the_text_is_as_the_model_wrote_it_calls_included() -> None:
    answer = Served(student=FakeArm(text=KITCHEN)).ask(path="/v1/completions", model="student").json()
    assert (answer["object"], answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == ("text_completion", KITCHEN, "stop")
    assert answer["usage"]["total_tokens"] == 39


def test_a_stream_adds_up_to_the_text_and_ends_with_usage_and_done() -> None:
    fields = {"model": "student", "stream": True, "stream_options": {"include_usage": True}}
    text = Served(student=FakeArm(text="one\ntwo")).ask(path="/v1/completions", **fields).text
    *events, done = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    bodies = [json.loads(event) for event in events]
    assert done == "[DONE]"
    assert "".join(choice["text"] for body in bodies for choice in body["choices"]) == "onetwo"
    assert bodies[-2]["choices"][0]["finish_reason"] == "stop"
    assert (bodies[-1]["choices"], bodies[-1]["usage"]["completion_tokens"]) == ([], 9)


def test_fields_of_chats_are_refused() -> None:
    answer = Served(student=FakeArm()).ask(path="/v1/completions", best_of=3)
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "best_of: no such field here")
