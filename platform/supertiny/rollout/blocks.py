"""The rows that Ray Data is given, and the blocks that its row-level checkpoint says are finished.

A block's ids are written to `done` as `<block>.pending.parquet`, its rows to `blocks` as `<block>*.parquet`, and only then is the
former renamed `<block>.parquet`: so a block that was cut off never counts.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from supertiny.errors import CorruptArtifact
from supertiny.records import Prompt

_ROWS = pa.schema([("rollout_id", pa.string()), ("index", pa.int32()), ("prompt", pa.string())])
_ROWS_AT_ONCE = 10_000


def write_rows(rows: Iterable[tuple[str, int, Prompt]], folder: Path) -> int:
    """Write rollouts that are to be made, as id, index and prompt, in place of what the folder held; how many they are."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    number, left = 0, iter(rows)
    with pq.ParquetWriter(folder / "rows.parquet", _ROWS) as file:
        while some := list(islice(left, _ROWS_AT_ONCE)):
            ids, indices, prompts = zip(*some, strict=True)
            texts = [json.dumps(prompt.model_dump()) for prompt in prompts]  # pydantic's own JSON refuses a lone surrogate
            file.write_table(pa.table([ids, indices, texts], schema=_ROWS))
            number += len(some)
    return number


def finished_names(done: Path) -> set[str]:
    """Names of the finished blocks."""
    return {path.stem for path in done.glob("*.parquet") if not path.name.endswith(".pending.parquet")}


def finished_ids(done: Path) -> set[str]:
    """Ids of the rollouts in finished blocks.

    Raises:
        CorruptArtifact: a checkpoint cannot be read.
    """
    return {rollout_id for name in finished_names(done) for rollout_id in _ids(done / f"{name}.parquet")}


def _ids(path: Path) -> list[str]:
    try:
        ids: list[str] = pq.read_table(path, columns=["rollout_id"], partitioning=None).column(0).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise CorruptArtifact(f"{path} cannot be read as Parquet: {error}; remove it, and its block is made again") from None
    return ids


def block_files(blocks: Path, name: str) -> list[Path]:
    """The files that hold one block's rows."""
    return sorted(blocks.glob(f"{name}*.parquet"))


def finished_files(blocks: Path, done: Path) -> list[Path]:
    """The files of all finished blocks."""
    return [path for name in sorted(finished_names(done)) for path in block_files(blocks, name)]
