"""What a request may hold, and what a refusal says."""

import json
import re
from typing import Any

import pytest

from supertiny.serving.config import LimitsConfig
from supertiny.serving.request import ChatRequest, TextRequest, parse_request

TOOLS = [{"type": "function", "function": {"name": "set_light", "parameters": {"type": "object"}}}]
HELLO = [{"role": "user", "content": "hello"}]


def parsed(**fields: Any) -> ChatRequest:
    """A request that was let through."""
    return parse_request(ChatRequest, json.dumps({"model": "auto", "messages": HELLO, **fields}).encode(), LimitsConfig(), TOOLS)


def test_a_request_without_sampling_is_greedy_and_as_long_as_the_limit() -> None:
    sampling = parsed().sampling(LimitsConfig(completion_tokens=99))
    assert sampling.fit_context
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens, sampling.stop, sampling.seed) == (0.0, 1.0, 99, (), None)


def test_max_completion_tokens_goes_before_max_tokens_and_one_stop_is_a_list_of_one() -> None:
    sampling = parsed(max_tokens=3, max_completion_tokens=5, stop="\n").sampling(LimitsConfig())
    assert not sampling.fit_context
    assert (sampling.max_tokens, sampling.stop) == (5, ("\n",))


def test_null_is_the_same_as_leaving_a_field_out() -> None:
    assert parsed(stream_options=None, seed=None, user=None, tools=None) == parsed()


def test_text_parts_are_joined_and_an_answer_that_was_echoed_keeps_its_calls() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "set_light", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "done"},
    ]
    assert parsed(messages=messages).plain_messages() == [
        {"role": "user", "content": "ab"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "done", "tool_call_id": "c1"},
    ]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"max_tokens": -1}, "max_tokens: Input should be greater than or equal to 1"),
        ({"max_tokens": 10**6}, "max_tokens: 1000000, at most 256"),
        ({"max_completion_tokens": 257}, "max_tokens: 257, at most 256"),
        ({"n": 2}, "n: Input should be 1"),
        ({"temperature": 3}, "temperature: "),
        ({"stop": ["a"] * 5}, "stop: "),
        ({"stop": "x" * 65}, "stop: each stop has 1 to 64 characters"),
        ({"messages": []}, "messages: "),
        ({"messages": HELLO * 65}, "messages: 65, at most 64"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role: "),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages.0.content"),
        ({"logprobs": True}, "logprobs: no such field here"),
        ({"chat_template": "{{ 1 }}"}, "chat_template: no such field here"),
        ({"response_format": {"type": "json_object"}}, "response_format: no such field here"),
        ({"tool_choice": "required"}, "tool_choice: "),
        ({"tools": [{"type": "function", "function": {"name": "rm"}}]}, "tools: 'rm' is not a tool of this task; it has set_light"),
        ({"tools": [{}]}, "tools: None is not a tool"),
        ({"tools": [{**TOOLS[0], "x": "y" * 70_000}]}, "tools: over 65536 bytes"),
    ],
)
def test_a_refusal_names_the_field_and_the_cap(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(said)):
        parsed(**fields)


@pytest.mark.parametrize(
    "body", [b"", b"\xff\xfe", b"{", b"[" * 100_000, b'{"a":' * 5000, b'"text"', b"[1]", b'{"model": NaN}', b'{"model": "\\ud800"}']
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"JSON|valid dictionary"):
        parse_request(ChatRequest, body, LimitsConfig(), TOOLS)


def test_the_tasks_own_tools_may_be_named() -> None:
    assert parsed(tools=TOOLS).tools == TOOLS


def test_a_text_prompt_is_a_users_message_and_a_list_of_one_is_that_one() -> None:
    for prompt in ("hello", ["hello"]):
        request = parse_request(TextRequest, json.dumps({"model": "auto", "prompt": prompt}).encode(), LimitsConfig(), TOOLS)
        assert request.plain_messages() == HELLO


@pytest.mark.parametrize(
    ("prompt", "said"),
    [(["a", "b"], "prompt: 2 prompts, expected 1"), ([1, 2], "prompt: 2 prompts"), ("", "prompt: "), ([[1]], "prompt: ")],
)
def test_token_ids_and_several_prompts_are_refused(prompt: Any, said: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(said)):
        parse_request(TextRequest, json.dumps({"model": "auto", "prompt": prompt}).encode(), LimitsConfig(), TOOLS)
