"""Progress of a rollout, read off the blocks that it writes."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from supertiny.errors import NoProgress
from supertiny.records import StepUsage
from supertiny.rollout.blocks import block_files, finished_names
from supertiny.rollout.estimate import estimate, measured_rates
from supertiny.rollout.ledger import add
from supertiny.rollout.spending import Spending
from supertiny.rollout_table import read_steps

log = logging.getLogger(__name__)
_COUNTED = ["rollout_id", "accepted", "reason", "evidence", "steps", "seconds"]
_REASONS_IN_A_LINE = 4
Tell = Callable[["Tally", Spending, int], None]
"""Is told how a rollout stands, and how many rollouts this attempt makes."""


@dataclass(frozen=True)
class Goal:
    """What is to be made, and how it is watched."""

    rollouts: int
    """In this attempt."""
    measured_rollouts: int
    """After so many of them the rates are known."""
    num_engines: int
    log_every_seconds: float
    no_progress_seconds: float


@dataclass
class Tally:
    """What the finished blocks hold; blocks there at the start are not counted."""

    blocks: Path
    done: Path
    seen: set[str] = field(default_factory=set)
    rollouts: int = 0
    accepted: int = 0
    """Before the filters that need whole groups."""
    rejected: Counter[str] = field(default_factory=Counter)
    """By reason."""
    sums: dict[str, Any] = field(default_factory=dict)
    """What each pipeline step took, as plain numbers: a million rows are added up here."""
    row_seconds: list[float] = field(default_factory=list)
    """Of rollouts that nobody has taken yet."""
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

    @property
    def steps(self) -> dict[str, StepUsage]:
        """What each pipeline step took."""
        return {name: StepUsage.model_validate(step) for name, step in self.sums.items()}

    @property
    def total(self) -> StepUsage:
        """Of all steps."""
        return sum(self.steps.values(), StepUsage())

    @property
    def tokens(self) -> int:
        """Completion tokens."""
        return self.total.usage.completion_tokens

    def seconds_left(self, total: int) -> float:
        """Until `total` rollouts of this attempt are made, at the speed so far."""
        return self.seconds_a_rollout * (total - self.rollouts)

    def take_row_seconds(self) -> list[float]:
        """How long each rollout took that was counted since the last time."""
        taken, self.row_seconds = self.row_seconds, []
        return taken

    def update(self) -> int:
        """Count the blocks finished since the last call, and return how many they are."""
        new = finished_names(self.done) - self.seen
        for name in new:
            for path in block_files(self.blocks, name):
                self._count(pq.read_table(path, columns=_COUNTED, partitioning=None))
        self.seen |= new
        if not self.first_rollouts:
            self.first_rollouts, self.first_seen = self.rollouts, time.monotonic()
        return len(new)

    def _count(self, table: pa.Table) -> None:
        ids, accepted, reasons, evidences, steps, seconds = (table.column(name).to_pylist() for name in _COUNTED)
        self.rollouts += table.num_rows
        self.accepted += sum(accepted)
        self.row_seconds += seconds
        for rollout_id, kept, reason, evidence in zip(ids, accepted, reasons, evidences, strict=True):
            if kept:
                continue
            if reason not in self.rejected:
                log.info("the first rejected as %s: %s: %s", reason, rollout_id, evidence)
            self.rejected[reason] += 1
        for row in steps:
            add(self.sums, json.loads(row))


def endpoint_usd(files: Sequence[Path]) -> float:
    """Dollars for the tokens of endpoints in the rows of blocks."""
    tables = (pq.read_table(path, columns=["steps"], partitioning=None) for path in files)
    rows = (read_steps(row) for table in tables for row in table.column("steps").to_pylist())
    return sum(step.endpoint_usd for row in rows for step in row.values())


def watch(written: Future[None], tally: Tally, goal: Goal, spending: Spending, tell: Tell) -> None:
    """Wait until everything is written, with a line in the log now and then; what the writer raised, this raises.

    Args:
        tell: is told as often as the log, and at the end.

    Raises:
        NoProgress: no block was finished for `no_progress_seconds`.
        BudgetExceeded: the budget is spent, or the first prompts show that it will not do.
    """
    moved, measured, usd_before = tally.started, False, spending.endpoint_usd
    while not wait([written], timeout=goal.log_every_seconds).done:
        if tally.update():
            moved = time.monotonic()
        elif time.monotonic() - moved > goal.no_progress_seconds:
            raise NoProgress(
                f"no block of rollouts finished for {goal.no_progress_seconds:g} s, {tally.rollouts} of {goal.rollouts} rollouts made; "
                "are the cluster's CPUs taken by something else, or is layout.block_rows too many for that time? "
                "Run it again to go on from here"
            )
        spending.endpoint_usd = usd_before + tally.total.endpoint_usd
        spending.save()
        log.info("%s", describe(tally, goal.rollouts, spending))
        tell(tally, spending, goal.rollouts)
        spending.check(tally.rollouts, goal.rollouts)
        if not measured and tally.rollouts >= goal.measured_rollouts:
            measured = True
            _check_estimate(tally, goal, spending)
    written.result()
    tally.update()
    spending.endpoint_usd = usd_before + tally.total.endpoint_usd
    tell(tally, spending, goal.rollouts)


def _check_estimate(tally: Tally, goal: Goal, spending: Spending) -> None:
    rates = measured_rates(tally.rollouts, tally.total)
    left = goal.rollouts - tally.rollouts
    if rates is None or not left:
        return
    found = estimate(left, rates, goal.num_engines, spending.usd_per_hour)
    log.info(
        "by the first %d rollouts the other %d take about %d prompt and %d completion tokens, %.3g hours and $%.3g; $%.3g are spent",
        *(tally.rollouts, left, found.prompt_tokens, found.completion_tokens, found.hours, found.usd, spending.usd),
    )
    spending.check_estimate(found.usd, tally.rollouts, left)


def describe(tally: Tally, total: int, spending: Spending) -> str:
    """How a rollout stands, in a line; of the reasons for rejections the commonest ones."""
    if not tally.rollouts:
        return f"0/{total} rollouts after {tally.seconds:.0f} s: the engine is starting, or still at its first block"
    share, speed = tally.accepted / tally.rollouts, tally.tokens / tally.rollouts / tally.seconds_a_rollout
    commonest = ", ".join(f"{reason} {rows}" for reason, rows in tally.rejected.most_common(_REASONS_IN_A_LINE))
    more = ", …" if len(tally.rejected) > _REASONS_IN_A_LINE else ""
    rejected = f", {tally.rejected.total()} rejected ({commonest}{more})" if commonest else ""
    return (
        f"{tally.rollouts}/{total} rollouts, {tally.accepted} accepted ({share:.0%}){rejected}, {speed:.0f} tokens/s, "
        f"${spending.usd:.3g} so far, {tally.seconds_left(total):.0f} s left"
    )
