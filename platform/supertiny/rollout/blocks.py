"""The blocks that Ray Data's row-level checkpoint says are finished.

A block's ids are written to `done` as `<block>.pending.parquet`, its rows to `blocks` as `<block>*.parquet`, and only then is the
former renamed `<block>.parquet`: so a block that was cut off never counts.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq


def finished_names(done: Path) -> set[str]:
    """Names of the finished blocks."""
    return {path.stem for path in done.glob("*.parquet") if not path.name.endswith(".pending.parquet")}


def finished_ids(done: Path) -> set[str]:
    """Ids of the rollouts in finished blocks."""
    paths = [done / f"{name}.parquet" for name in finished_names(done)]
    return {name for path in paths for name in pq.read_table(path, columns=["rollout_id"]).column(0).to_pylist()}


def block_files(blocks: Path, name: str) -> list[Path]:
    """The files that hold one block's rows."""
    return sorted(blocks.glob(f"{name}*.parquet"))


def finished_files(blocks: Path, done: Path) -> list[Path]:
    """The files of all finished blocks."""
    return [path for name in sorted(finished_names(done)) for path in block_files(blocks, name)]
