"""The one place where a conversation becomes token ids, so that training, scoring and serving see the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from supertiny.records import Message, Tool


def prompt_token_ids(tokenizer: Any, messages: Sequence[Message], tools: Sequence[Tool]) -> list[int]:
    """Ids of a rendered conversation, ready for the answer. Whether `tools` appear in it is the chat template's decision."""
    rendered = tokenizer.apply_chat_template(list(messages), tools=list(tools) or None, add_generation_prompt=True, tokenize=False)
    ids: list[int] = tokenizer.encode(rendered, add_special_tokens=False)
    return ids


def completion_token_ids(tokenizer: Any, text: str) -> list[int]:
    """Ids of an answer, the end of turn included. Encoded by itself, never together with its prompt."""
    return [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
