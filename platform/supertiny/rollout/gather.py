"""What all finished blocks hold, in prompt order, without ever holding more than a few of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from supertiny.records import Rollout
from supertiny.rollout.ledger import check_complete
from supertiny.rollout_table import from_table, read_table


def in_order(files: Sequence[Path], expected_ids: Sequence[str]) -> Iterator[Rollout]:
    """Every expected rollout once, in their order. A block holds rows that are near one another, so few blocks are held at a time.

    A row that is in two blocks is taken once: a killed driver's last block may have been finished after the next one had started.

    Raises:
        CorruptArtifact: a rollout is missing or not asked for, or a block cannot be read.
    """
    waiting: dict[int, Rollout] = {}
    place = 0
    for path, places in _by_first_place(files, expected_ids):
        for at, row in zip(places, from_table(read_table(path), str(path)), strict=True):
            if at >= place:
                waiting.setdefault(at, row)
        while place in waiting:
            yield waiting.pop(place)
            place += 1


def whole_groups(rollouts: Iterable[Rollout], num_prompts: int | None) -> Iterator[list[Rollout]]:
    """The rollouts of so many prompts at a time, None for all at once; a prompt's are next to each other."""
    chunk: list[Rollout] = []
    for number, (_, group) in enumerate(groupby(rollouts, key=lambda rollout: rollout.prompt.id)):
        if num_prompts is not None and number and number % num_prompts == 0:
            yield chunk
            chunk = []
        chunk += group
    if chunk:
        yield chunk


def _by_first_place(files: Sequence[Path], expected_ids: Sequence[str]) -> list[tuple[Path, list[int]]]:
    """Each file with the places of its rows among the expected ones, those first that begin first."""
    ids = [pq.read_table(path, columns=["rollout_id"], partitioning=None).column(0) for path in files]
    found = pa.chunked_array([chunk for column in ids for chunk in column.chunks], pa.string())
    places = pc.index_in(found, value_set=pa.array(expected_ids, pa.string()))
    if places.null_count or len(pc.unique(places)) < len(expected_ids):
        check_complete(pc.unique(found).to_pylist(), expected_ids)
    ends = np.cumsum([len(column) for column in ids])[:-1]
    split: list[Any] = np.split(places.to_numpy(), ends) if files else []
    blocks = [(path, own.tolist()) for path, own in zip(files, split, strict=True) if len(own)]
    return sorted(blocks, key=lambda block: (min(block[1]), block[0]))
