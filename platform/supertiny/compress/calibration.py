"""The rows that show a compressing stage which weights matter: the student's own prompts and completions."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from supertiny.errors import MissingInput
from supertiny.llm.chat import check_drawn_ids, completion_token_ids, prompt_token_ids
from supertiny.records import Rollout

MAX_BATCH_TOKENS = 512
"""Tokens a forward pass, where rows are no longer: bounds the float32 logits (0.3 GB at a vocabulary of 151,936)."""

Batch = list[list[int]]
"""Rows of token ids, all of one length."""


def calibration_rows(tokenizer: Any, rollouts: Iterable[Rollout], num_rows: int, max_row_tokens: int) -> Batch:
    """Token ids of prompt and completion, for one rollout of each of `num_rows` prompts.

    Raises:
        MissingInput: there is no rollout at all.
        CorruptArtifact: a drawn rollout's token ids are not its text under this tokenizer.
    """
    return [row_token_ids(tokenizer, rollout)[:max_row_tokens] for rollout in first_rollouts(rollouts, num_rows)]


def row_token_ids(tokenizer: Any, rollout: Rollout) -> list[int]:
    """Prompt and completion as this tokenizer encodes them.

    Raises:
        CorruptArtifact: the rollout's own token ids are not its text under this tokenizer.
    """
    prompt = prompt_token_ids(tokenizer, rollout.prompt.messages, rollout.tools)
    completion = completion_token_ids(tokenizer, rollout.completion.text)
    check_drawn_ids(tokenizer, rollout, completion)
    return [*prompt, *completion]


def first_rollouts(rollouts: Iterable[Rollout], num_rows: int) -> list[Rollout]:
    """The first rollout of each of `num_rows` prompts.

    The prompts are drawn by the hash of their ids: always the same ones, from every slice alike, whatever the table's order.

    Args:
        rollouts: taken one by one; twice `num_rows` are held at most.

    Raises:
        MissingInput: there is no rollout at all.
    """
    first_by_hash: dict[bytes, Rollout] = {}
    for rollout in rollouts:
        first_by_hash.setdefault(hashlib.sha256(rollout.prompt.id.encode()).digest(), rollout)
        if len(first_by_hash) > 2 * num_rows:  # what falls out here cannot come back: as many are before it
            first_by_hash = _of_lowest_hash(first_by_hash, num_rows)
    if not first_by_hash:
        raise MissingInput("the rollouts hold no accepted row to calibrate with; look at their rejected rows")
    return list(_of_lowest_hash(first_by_hash, num_rows).values())


def _of_lowest_hash(by_hash: Mapping[bytes, Rollout], number: int) -> dict[bytes, Rollout]:
    return {place: by_hash[place] for place in sorted(by_hash)[:number]}


def equal_length_batches(rows: Sequence[list[int]], max_tokens: int = MAX_BATCH_TOKENS) -> list[Batch]:
    """Every row once, in batches of one length each: padding would count as tokens in the statistics."""
    by_length: dict[int, Batch] = defaultdict(list)
    for row in rows:
        by_length[len(row)].append(row)
    batches = []
    for length, alike in sorted(by_length.items()):
        size = max(1, max_tokens // length)
        batches += [alike[start : start + size] for start in range(0, len(alike), size)]
    return batches
