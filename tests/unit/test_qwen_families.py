"""Chat templates and tool formats of Qwen2.5 and Qwen3, by tokenizers made to their shape: what is taught is what they write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from qwen_families import TEMPLATES, make_family_model, make_family_tokenizer

from supertiny.artifacts import open_artifact
from supertiny.errors import ConfigError
from supertiny.llm.chat import completion_token_ids, prompt_token_ids
from supertiny.records import Call
from supertiny.tasks.calls import parse, render
from supertiny.train.adopt import adopt
from supertiny.train.adopt_config import AdoptConfig
from supertiny.train.students import open_tokenizer

TOOLS = [
    {"type": "function", "function": {"name": "set_light", "description": "Turn a light on or off.", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "play", "description": "Play a song.", "parameters": {"type": "object"}}},
]
ASKED = [{"role": "user", "content": "light on in the café"}]
CALLS = [Call(name="set_light", arguments={"room": "café", "on": True}), Call(name="play", arguments={})]
every_family = pytest.mark.parametrize("family", TEMPLATES)


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    return {family: make_family_tokenizer(family) for family in TEMPLATES}


@every_family
def test_a_prompt_shows_every_tool_once_and_ends_where_the_answer_begins(family: str, tokenizers: dict[str, Any]) -> None:
    text = tokenizers[family].decode(prompt_token_ids(tokenizers[family], ASKED, TOOLS))
    listed = text.partition("<tools>\n")[2].partition("\n</tools>")[0]
    assert [json.loads(line) for line in listed.splitlines()] == TOOLS
    assert text.endswith("<|im_start|>user\nlight on in the café<|im_end|>\n<|im_start|>assistant\n")


@every_family
def test_calls_as_we_teach_them_are_what_the_family_s_own_template_writes(family: str, tokenizers: dict[str, Any]) -> None:
    said = [{"type": "function", "function": {"name": call.name, "arguments": call.arguments}} for call in CALLS]
    history = [*ASKED, {"role": "assistant", "content": "", "tool_calls": said}]
    text = tokenizers[family].apply_chat_template(history, tools=TOOLS, tokenize=False)
    assert text.partition("<|im_start|>assistant\n")[2] == f"{render(CALLS)}<|im_end|>\n"


@every_family
def test_a_completion_s_tokens_are_its_text_and_the_end_of_the_turn(family: str, tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers[family]
    ids = completion_token_ids(tokenizer, render(CALLS))
    assert tokenizer.decode(ids) == f"{render(CALLS)}<|im_end|>"
    assert ids.count(tokenizer.convert_tokens_to_ids("<tool_call>")) == len(CALLS)
    assert parse(tokenizer.decode(ids[:-1])) == CALLS


@every_family
def test_a_tool_s_answer_is_shown_and_the_prompt_goes_on(family: str, tokenizers: dict[str, Any]) -> None:
    said = {"type": "function", "function": {"name": "play", "arguments": {}}}
    history = [*ASKED, {"role": "assistant", "content": "", "tool_calls": [said]}, {"role": "tool", "content": "done", "tool_call_id": "1"}]
    text = tokenizers[family].decode(prompt_token_ids(tokenizers[family], history, TOOLS))
    assert text.endswith("<|im_start|>user\n<tool_response>\ndone\n</tool_response><|im_end|>\n<|im_start|>assistant\n")


def test_without_a_system_message_the_older_family_has_one_of_its_own(tokenizers: dict[str, Any]) -> None:
    texts = {family: tokenizer.decode(prompt_token_ids(tokenizer, ASKED, [])) for family, tokenizer in tokenizers.items()}
    assert texts["qwen2.5"].startswith("<|im_start|>system\nYou are Qwen")
    assert texts["qwen3"].startswith("<|im_start|>user\n")


def test_the_calls_of_an_answer_that_thought_first_are_read() -> None:
    assert parse(f"<think>\nA light, and music.\n</think>\n\n{render(CALLS)}") == CALLS


def test_a_model_adopted_without_thinking_begins_every_answer_after_an_empty_thought(tmp_path: Path) -> None:
    source = make_family_model(tmp_path, "qwen3")
    (source / "manifest.json").unlink()
    adopt(AdoptConfig(run_root=str(tmp_path / "run"), name="teacher", source=str(source), thinking=False))
    adopted = open_tokenizer(open_artifact("teacher", str(tmp_path / "run"), "model").path)
    text = adopted.decode(prompt_token_ids(adopted, ASKED, TOOLS))
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    plain = open_tokenizer(source)
    assert plain.decode(prompt_token_ids(plain, ASKED, TOOLS)).endswith("<|im_start|>assistant\n")


def test_thinking_of_a_family_that_has_no_such_switch_is_refused(tmp_path: Path) -> None:
    source = make_family_model(tmp_path, "qwen2.5")
    (source / "manifest.json").unlink()
    with pytest.raises(ConfigError, match="thinking = false without effect"):
        adopt(AdoptConfig(run_root=str(tmp_path / "run"), name="student", source=str(source), thinking=False))
