"""The blocks that Ray Data's row-level checkpoint says are finished.

A block's ids are written to `done` as `<block>.pending.parquet`, its rows to `blocks` as `<block>*.parquet`, and only then is the
former renamed `<block>.parquet`: so a block that was cut off never counts.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from supertiny.errors import CorruptArtifact


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
