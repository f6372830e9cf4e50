"""The one place where a conversation becomes token ids, so that training, scoring and serving see the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from supertiny.errors import CorruptArtifact
from supertiny.records import Message, Rollout, Tool

OTHER_TOKENS = (
    "take rollouts in its own tokens (a student with a cut vocabulary has its own, `<name>-rollouts`), or make them again, with a teacher "
    "of its tokenizer"
)
"""What to do about rollouts whose ids are not the student's."""


def prompt_token_ids(tokenizer: Any, messages: Sequence[Message], tools: Sequence[Tool]) -> list[int]:
    """Ids of a rendered conversation, ready for the answer. Whether `tools` appear in it is the chat template's decision."""
    rendered = tokenizer.apply_chat_template(list(messages), tools=list(tools) or None, add_generation_prompt=True, tokenize=False)
    ids: list[int] = tokenizer.encode(rendered, add_special_tokens=False)
    return ids


def completion_token_ids(tokenizer: Any, text: str) -> list[int]:
    """Ids of an answer, the end of turn included. Encoded by itself, never together with its prompt."""
    return [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]


def check_drawn_ids(tokenizer: Any, rollout: Rollout, encoded: Sequence[int]) -> None:
    """Refuse a rollout whose token ids, if it has any, are not its text under the student's tokenizer.

    Args:
        encoded: `completion_token_ids` of its text; a teacher may have drawn the same text in other tokens.

    Raises:
        CorruptArtifact: naming it.
    """
    given = rollout.completion.token_ids
    if given and given != encoded and tokenizer.decode(given[:-1]) != rollout.completion.text:
        raise CorruptArtifact(
            f"rollout {rollout.rollout_id}: its {len(given)} token ids are not its text under the student's tokenizer; {OTHER_TOKENS}"
        )
