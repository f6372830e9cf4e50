"""Rows of JSONL: read, checked and split, so that the calls of `train` are never kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from supertiny.errors import CorruptArtifact
from supertiny.records import Call, Record

Split = Literal["gold", "train", "heldout"]
"""`gold` is for pretraining alone, `train` is what rollouts are made of, `heldout` is what is evaluated on."""


class Row(Record):
    """One prompt of a file."""

    id: str
    text: str
    split: Split
    calls: list[Call] | None
    """The right calls; always None in `train`."""
    out_of_scope: bool
    """Whether it comes from a file of out-of-scope prompts, or its known calls are none."""


class Shares(Record):
    """How a file is split, by the hash of each row's id."""

    holdout_fraction: float
    gold_fraction: float
    """Of the rows that are not held out."""
    salt: str

    def split_of(self, row_id: str) -> Split:
        """The split that an id falls in, whatever other rows there are."""
        if position(f"{self.salt}/holdout/{row_id}") < self.holdout_fraction:
            return "heldout"
        return "gold" if position(f"{self.salt}/gold/{row_id}") < self.gold_fraction else "train"


def position(text: str) -> float:
    """Where a text's hash falls in [0, 1)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def read_rows(prompts: Path, out_of_scope: list[Path], shares: Shares, functions: Collection[str] = ()) -> list[Row]:
    """The rows of all files in the order of their ids' hashes, so that any number from the front is a fair sample.

    A prompt that another repeats without regard to case is left out: no text is in two splits.

    Args:
        functions: labelled rows that call others are left out too; none leaves out nothing.

    Raises:
        CorruptArtifact: a line is no such row, or an id comes twice.
    """
    rows: dict[str, Row] = {}
    texts: set[str] = set()
    for path in (prompts, *out_of_scope):
        for number, value in _lines(path):
            row = _row(value, shares, out_of_scope=path != prompts, where=f"{path}:{number}")
            if row.id in rows:
                raise CorruptArtifact(f"{path}:{number}: the id {row.id} came before; ids are unique over all files")
            if row.text.casefold() not in texts and not (functions and _names(value, f"{path}:{number}") - set(functions)):
                texts.add(row.text.casefold())
                rows[row.id] = row
    return sorted(rows.values(), key=lambda row: position(f"{shares.salt}/order/{row.id}"))


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        for number, line in enumerate(path.read_text().split("\n"), 1):  # splitlines would also cut at what JSON leaves as it is
            if line.strip():
                yield number, json.loads(line)
    except ValueError as error:
        raise CorruptArtifact(f"{path}: not JSONL in UTF-8: {error}") from None


def _row(value: Any, shares: Shares, *, out_of_scope: bool, where: str) -> Row:
    if not isinstance(value, dict) or not isinstance(value.get("id"), str) or not isinstance(value.get("prompt"), str):
        raise CorruptArtifact(f'{where}: expected {{"id": text, "prompt": text, "calls": [...]}}, got {str(value)[:80]}')
    labelled = out_of_scope or value.get("calls") is not None
    split = shares.split_of(value["id"]) if labelled else "train"
    calls = None if split == "train" else [] if out_of_scope else _calls(value["calls"], where)
    return Row(id=value["id"], text=value["prompt"], split=split, calls=calls, out_of_scope=out_of_scope or calls == [])


def _names(value: Any, where: str) -> set[str]:
    """The functions that a row's calls name, none where it has no calls."""
    return {call.name for call in _calls(value.get("calls") or [], where)}


def _calls(value: Any, where: str) -> list[Call]:
    try:
        return [Call.model_validate(call) for call in value]
    except (TypeError, ValidationError):
        raise CorruptArtifact(f'{where}: calls: expected a list of {{"name": text, "arguments": {{...}}}}, got {str(value)[:80]}') from None
