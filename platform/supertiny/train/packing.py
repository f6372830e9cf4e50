"""Rollouts as flat arrays on disk, which every worker maps into memory and reads its own rows from.

Shapes: R rows, L tokens of all rows, M completion tokens that have the teacher's top-k, K kept tokens.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from supertiny.errors import CorruptArtifact
from supertiny.llm.chat import completion_token_ids, prompt_token_ids
from supertiny.records import Rollout, TopK

log = logging.getLogger(__name__)
ARRAYS = ("tokens_L", "row_starts_R", "prompt_lengths_R", "top_k_ids_MK", "top_k_logprobs_MK", "top_k_starts_R")


@dataclass(frozen=True)
class PackedRows:
    """R rows end to end: row r is the prompt and completion `tokens_L[row_starts_R[r]:row_starts_R[r + 1]]`."""

    rollout_ids: list[str]
    tokens_L: NDArray[np.int32]
    row_starts_R: NDArray[np.int64]
    """R + 1 offsets."""
    prompt_lengths_R: NDArray[np.int64]
    """How many of a row's tokens are the prompt's."""
    top_k_ids_MK: NDArray[np.int32]
    top_k_logprobs_MK: NDArray[np.float32]
    """-inf where a position has fewer than K tokens."""
    top_k_starts_R: NDArray[np.int64]
    """R + 1 offsets; two equal ones mean that the row has no top-k."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row, (R,)."""
        return np.diff(self.row_starts_R)

    def completion_tokens(self, rows: NDArray[np.int64]) -> int:
        """Completion tokens of some rows."""
        return int((self.lengths - self.prompt_lengths_R)[rows].sum())

    def teacher_tokens(self, rows: NDArray[np.int64]) -> int:
        """Those of them that have the teacher's top-k."""
        return int(np.diff(self.top_k_starts_R)[rows].sum())


def pack(rollouts: Iterable[Rollout], tokenizer: Any, max_tokens: int) -> PackedRows:
    """Every rollout of at most `max_tokens` tokens, in the order given; of each only its arrays are kept.

    Raises:
        CorruptArtifact: a rollout's token ids are not its text under this tokenizer, or its top-k does not cover them.
    """
    prompts: dict[str, list[int]] = {}  # the completions of one prompt share its tokens
    ids, tokens, prompt_lengths, top_k = [], [], [], []
    for rollout in rollouts:
        prompt = prompts.get(rollout.prompt.id)
        if prompt is None:
            prompt = prompts[rollout.prompt.id] = prompt_token_ids(tokenizer, rollout.prompt.messages, rollout.tools)
        completion = _completion(rollout, tokenizer)
        if len(prompt) + len(completion) > max_tokens:
            continue
        ids.append(rollout.rollout_id)
        tokens.append(np.array([*prompt, *completion], np.int32))
        prompt_lengths.append(len(prompt))
        top_k.append(_top_k(rollout.completion.top_k))
    widest = max((ids_TK.shape[1] for ids_TK, _ in top_k), default=0)
    return PackedRows(
        rollout_ids=ids,
        tokens_L=np.concatenate([np.zeros(0, np.int32), *tokens]),
        row_starts_R=_starts([len(row) for row in tokens]),
        prompt_lengths_R=np.array(prompt_lengths, np.int64),
        top_k_ids_MK=np.concatenate([np.zeros((0, widest), np.int32), *(_widened(ids_TK, widest) for ids_TK, _ in top_k)]),
        top_k_logprobs_MK=np.concatenate(
            [np.zeros((0, widest), np.float32), *(_widened(logprobs_TK, widest, -np.inf) for _, logprobs_TK in top_k)]
        ),
        top_k_starts_R=_starts([len(ids_TK) for ids_TK, _ in top_k]),
    )


def check_tokens(rows: PackedRows, vocabulary_size: int, rollouts: Path) -> None:
    """Refuse tokens that the student has no embedding for, which no worker could look up.

    Raises:
        CorruptArtifact: naming the largest.
    """
    largest = max(int(tokens.max(initial=0)) for tokens in (rows.tokens_L, rows.top_k_ids_MK))
    if largest >= vocabulary_size:
        raise CorruptArtifact(
            f"{rollouts}: token {largest}, its own or the teacher's, where the student's embedding has {vocabulary_size} rows; "
            "teacher and student must share a tokenizer, or the rollouts must be made again"
        )


def write_rows(rows: PackedRows, folder: Path) -> None:
    """One `.npy` file an array, and the ids."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ARRAYS:
        np.save(folder / f"{name}.npy", getattr(rows, name))
    (folder / "rollout_ids.json").write_text(json.dumps(rows.rollout_ids))


def read_rows(folder: Path) -> PackedRows:
    """What `write_rows` wrote, mapped into memory."""
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
    return PackedRows(rollout_ids=json.loads((folder / "rollout_ids.json").read_text()), **arrays)


def _completion(rollout: Rollout, tokenizer: Any) -> list[int]:
    """The completion's token ids, checked against its text, or made from it where the engine gave none."""
    completion = rollout.completion
    encoded = completion_token_ids(tokenizer, completion.text)
    given = completion.token_ids or encoded
    if given != encoded and tokenizer.decode(given[:-1]) != completion.text:
        raise CorruptArtifact(
            f"rollout {rollout.rollout_id}: its {len(given)} token ids are not its text under the student's tokenizer; "
            "teacher and student must share one, or the rollouts must be made again"
        )
    if completion.top_k and not len(completion.top_k.ids) == len(completion.top_k.logprobs) == len(given):
        raise CorruptArtifact(
            f"rollout {rollout.rollout_id}: {len(completion.top_k.ids)} teacher logprobs for {len(given)} completion tokens; "
            "was the same tokenizer used?"
        )
    return given


def _top_k(kept: TopK | None) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """(T, K) ids and log-probabilities; T = 0 without them."""
    k = max((len(position) for position in kept.ids), default=0) if kept else 0
    return _matrix(kept.ids if kept else [], k, 0, np.int32), _matrix(kept.logprobs if kept else [], k, -np.inf, np.float32)


def _widened(values_TK: NDArray[Any], width: int, fill: float | None = None) -> NDArray[Any]:
    """Columns of `fill`, or of each row's first value, added on the right."""
    missing = width - values_TK.shape[1]
    if not len(values_TK):
        return np.zeros((0, width), values_TK.dtype)
    added = np.repeat(values_TK[:, :1], missing, 1) if fill is None else np.full((len(values_TK), missing), fill, values_TK.dtype)
    return np.concatenate([values_TK, added], 1)


def _starts(lengths: Sequence[int]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.array(lengths, np.int64))])


def _matrix(rows: Sequence[Sequence[float]], width: int, fill: float, dtype: Any) -> NDArray[Any]:
    """Rows of equal width; shorter ones are padded with their own first id, or with `fill` for log-probabilities."""
    padded = [row if len(row) == width else [*row, *[fill if fill else row[0]] * (width - len(row))] for row in rows]
    return np.array(padded, dtype).reshape(len(rows), width)
