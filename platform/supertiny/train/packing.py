"""Rollouts as flat arrays on disk, which every worker maps into memory and reads its own rows from.

They are written row by row, so that whoever packs has one rollout's top-k in memory at a time.

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
from supertiny.llm.chat import OTHER_TOKENS, check_drawn_ids, completion_token_ids, prompt_token_ids
from supertiny.records import Rollout, TopK

log = logging.getLogger(__name__)
GROWING: dict[str, Any] = {"tokens_L": np.int32, "top_k_ids_MK": np.int32, "top_k_logprobs_MK": np.float32}
"""Arrays that a row is appended to, by their files' names."""
TOP_K = ("top_k_ids_MK", "top_k_logprobs_MK")
OF_ROWS = ("row_starts_R", "prompt_lengths_R", "top_k_starts_R")
_AT_ONCE = 2**16
"""Positions whose top-k is in memory at a time, where all are looked at."""


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


def pack(rollouts: Iterable[Rollout], tokenizer: Any, max_tokens: int, folder: Path) -> PackedRows:
    """Every rollout of at most `max_tokens` tokens that ends as the student's turns do, in the order given, in files of `folder`.

    Raises:
        CorruptArtifact: a rollout's token ids are not its text under this tokenizer, its top-k does not cover them, or most rollouts end
            with another token than the student's turns.
    """
    prompts: dict[str, list[int]] = {}  # the completions of one prompt share its tokens
    rows, other_ends = RowWriter(folder), 0
    for rollout in rollouts:
        prompt = prompts.get(rollout.prompt.id)
        if prompt is None:
            prompt = prompts[rollout.prompt.id] = prompt_token_ids(tokenizer, rollout.prompt.messages, rollout.tools)
        completion = _completion(rollout, tokenizer)
        if completion[-1] != tokenizer.eos_token_id:
            other_ends, end = other_ends + 1, completion[-1]
        elif len(prompt) + len(completion) <= max_tokens:
            rows.add(rollout.rollout_id, [*prompt, *completion], len(prompt), *_top_k(rollout.completion.top_k))
    if other_ends:
        ends = (
            f"token {end} ({tokenizer.decode([end])}), where the student's turns end with {tokenizer.eos_token_id} ({tokenizer.eos_token})"
        )
        if other_ends > len(rows.rollout_ids):
            raise CorruptArtifact(
                f"{other_ends} rollouts end with {ends}; its eos_token has to be what its template ends a turn with, and the teacher's"
            )
        log.warning("%d rollouts are left out that end with %s", other_ends, ends)
    return rows.close()


class RowWriter:
    """Appends rows to flat files."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.rollout_ids = folder, list[str]()
        self._lengths, self._prompt_lengths, self._num_top_k, self._width = list[int](), list[int](), list[int](), 0
        folder.mkdir(parents=True, exist_ok=True)
        self._files = {name: (folder / name).open("wb") for name in GROWING}

    def add(
        self, rollout_id: str, tokens: Sequence[int], prompt_length: int, ids_TK: NDArray[np.int32], logprobs_TK: NDArray[np.float32]
    ) -> None:
        """One row, with T = 0 where there is no top-k."""
        if len(ids_TK) and ids_TK.shape[1] > self._width:
            self._widen(ids_TK.shape[1])
        self.rollout_ids.append(rollout_id)
        self._lengths.append(len(tokens))
        self._prompt_lengths.append(prompt_length)
        self._num_top_k.append(len(ids_TK))
        added = (np.array(tokens), _widened(ids_TK, self._width), _widened(logprobs_TK, self._width, -np.inf))
        for (name, kind), values in zip(GROWING.items(), added, strict=True):
            self._files[name].write(values.astype(kind).tobytes())

    def close(self) -> PackedRows:
        """All that was added."""
        for file in self._files.values():
            file.close()
        arrays = (_starts(self._lengths), np.array(self._prompt_lengths, np.int64), _starts(self._num_top_k))
        for name, values in zip(OF_ROWS, arrays, strict=True):
            np.save(self._folder / f"{name}.npy", values)
        (self._folder / "rows.json").write_text(json.dumps({"rollout_ids": self.rollout_ids, "width": self._width}))
        return read_rows(self._folder)

    def _widen(self, width: int) -> None:
        """Rewrite what there is, since rows that are mapped have one width: replayed rollouts may have more of the teacher's tokens."""
        for name, fill in zip(TOP_K, (None, -np.inf), strict=True):
            self._files[name].close()
            path, narrow = self._folder / name, (self._folder / name).with_suffix(".narrow")
            path.rename(narrow)
            before, self._files[name] = _mapped(narrow, GROWING[name], self._width), path.open("wb")
            for start in range(0, len(before), _AT_ONCE):
                self._files[name].write(_widened(before[start : start + _AT_ONCE], width, fill).tobytes())
            narrow.unlink()
        self._width = width


def read_rows(folder: Path) -> PackedRows:
    """What `pack` wrote, mapped into memory."""
    rows = json.loads((folder / "rows.json").read_text())
    top_k = {name: _mapped(folder / name, GROWING[name], rows["width"]) for name in TOP_K}
    of_rows = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in OF_ROWS}
    return PackedRows(rows["rollout_ids"], tokens_L=_mapped(folder / "tokens_L", np.int32, 1)[:, 0], **top_k, **of_rows)


def check_tokens(rows: PackedRows, vocabulary_size: int, rollouts: Path) -> None:
    """Refuse tokens that the student has no embedding for, which no worker could look up.

    Raises:
        CorruptArtifact: naming the largest.
    """
    largest = max(int(tokens.max(initial=0)) for tokens in (rows.tokens_L, rows.top_k_ids_MK))
    if largest >= vocabulary_size:
        raise CorruptArtifact(
            f"{rollouts}: token {largest}, its own or the teacher's, where the student's embedding has {vocabulary_size} rows; "
            f"{OTHER_TOKENS}"
        )


def check_teachers_tokens(rows: PackedRows, student: Any, teacher: Any, rollouts: Path) -> None:
    """Refuse ids of the teacher's top-k that are other tokens in the student's tokenizer; one that it lacks is never right, and no harm.

    Raises:
        CorruptArtifact: with such a token.
    """
    found = np.zeros(0, np.int32)
    for start in range(0, len(rows.top_k_ids_MK), _AT_ONCE):
        found = np.union1d(found, rows.top_k_ids_MK[start : start + _AT_ONCE])
    ours, theirs = (each.convert_ids_to_tokens(found.tolist()) for each in (student, teacher))
    other = [named for named in zip(found, ours, theirs, strict=True) if None not in named and named[1] != named[2]]
    if other:
        number, our, their = other[0]
        raise CorruptArtifact(
            f"{rollouts}: {len(other)} ids of the teacher's top-k are other tokens of the student's, such as {number}, the teacher's "
            f"{their!r} and the student's {our!r}; teacher and student must share a tokenizer, or train on [losses] cross_entropy alone"
        )


def _mapped(path: Path, kind: Any, width: int) -> NDArray[Any]:
    """A file's values in rows of so many."""
    if not path.stat().st_size:  # which cannot be mapped
        return np.zeros((0, width), kind)
    return np.memmap(path, kind, "r").reshape(-1, width)


def _completion(rollout: Rollout, tokenizer: Any) -> list[int]:
    """The completion's token ids, checked against its text, or made from it where the engine gave none."""
    completion = rollout.completion
    encoded = completion_token_ids(tokenizer, completion.text)
    check_drawn_ids(tokenizer, rollout, encoded)
    given = completion.token_ids or encoded
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
