"""Progress of a rollout, read off the blocks that it writes."""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from supertiny.errors import NoProgress
from supertiny.rollout.blocks import block_files, finished_names

log = logging.getLogger(__name__)


@dataclass
class Tally:
    """What the finished blocks hold; blocks there at the start are not counted."""

    blocks: Path
    done: Path
    seen: set[str] = field(default_factory=set)
    rollouts: int = 0
    accepted: int = 0
    tokens: int = 0
    started: float = field(default_factory=time.monotonic)
    first_rollouts: int = 0
    first_seen: float = 0.0

    @property
    def seconds(self) -> float:
        """Since the count began, the engine's start included."""
        return time.monotonic() - self.started

    @property
    def seconds_a_rollout(self) -> float:
        """Since the first blocks were seen, so without the engine's start; with it while nothing came after them."""
        if self.rollouts == self.first_rollouts:
            return self.seconds / self.rollouts
        return (time.monotonic() - self.first_seen) / (self.rollouts - self.first_rollouts)

    def update(self) -> int:
        """Count the blocks finished since the last call, and return how many they are."""
        new = finished_names(self.done) - self.seen
        for name in new:
            for path in block_files(self.blocks, name):
                table = pq.read_table(path, columns=["accepted", "completion_tokens"], partitioning=None)
                self.rollouts += table.num_rows
                self.accepted += sum(table.column("accepted").to_pylist())
                self.tokens += sum(table.column("completion_tokens").to_pylist())
        self.seen |= new
        if not self.first_rollouts:
            self.first_rollouts, self.first_seen = self.rollouts, time.monotonic()
        return len(new)


def watch(written: Future[None], blocks: Path, done: Path, total: int, log_every_seconds: float, no_progress_seconds: float) -> Tally:
    """What was written, once all of it is, with a line in the log now and then; what the writer raised, this raises.

    Args:
        total: rollouts that are to be written.

    Raises:
        NoProgress: no block was finished for `no_progress_seconds`.
    """
    tally = Tally(blocks, done)
    tally.update()
    tally = Tally(blocks, done, seen=tally.seen)
    moved = tally.started
    while not wait([written], timeout=log_every_seconds).done:
        if tally.update():
            moved = time.monotonic()
        elif time.monotonic() - moved > no_progress_seconds:
            raise NoProgress(
                f"no block of rollouts finished for {no_progress_seconds:g} s, {tally.rollouts} of {total} rollouts made; "
                "are the cluster's CPUs taken by something else? Run it again to go on from here"
            )
        _report(tally, total)
    written.result()
    tally.update()
    return tally


def _report(tally: Tally, total: int) -> None:
    if not tally.rollouts:
        log.info("0/%s rollouts after %.0f s: the engine is starting, or still at its first block", total, tally.seconds)
        return
    left = tally.seconds_a_rollout * (total - tally.rollouts)
    share, speed = tally.accepted / tally.rollouts, tally.tokens / tally.rollouts / tally.seconds_a_rollout
    log.info("%s/%s rollouts, %.0f %% accepted, %.0f tokens/s, %.0f s left", tally.rollouts, total, 100 * share, speed, left)
