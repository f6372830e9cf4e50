"""A rollout's Prometheus metrics. What Ray makes of them, tests/local_ray/test_rollout_metrics.py scrapes."""

from __future__ import annotations

import re
from pathlib import Path

from test_rollout_blocks import write_block

from supertiny.rollout.metrics import COUNTERS, GAUGES, ROW_SECONDS, RayMetrics, counts, gauges
from supertiny.rollout.progress import Tally
from supertiny.rollout.spending import Spending

STEP = ("step", "answer")


def tally_of(folder: Path) -> Tally:
    """Three rollouts, two of them rejected."""
    write_block(folder, "a", ["p/0"], usd=0.25)
    write_block(folder, "b", ["p/1", "p/2"], reason="unlucky")
    tally = Tally(folder / "blocks", folder / "done")
    tally.update()
    return tally


def test_rows_are_counted_by_what_became_of_them_and_tokens_by_step_and_kind(tmp_path: Path) -> None:
    assert counts(tally_of(tmp_path)) == {
        ("supertiny_rollout_rows_done", ()): 3,
        ("supertiny_rollout_rows_accepted", ()): 1,
        ("supertiny_rollout_rows_rejected", (("reason", "unlucky"),)): 2,
        ("supertiny_rollout_calls", (STEP,)): 3,
        ("supertiny_rollout_engine_seconds", (STEP,)): 1.5,
        ("supertiny_rollout_tokens", (STEP, ("kind", "prompt"))): 30,
        ("supertiny_rollout_tokens", (STEP, ("kind", "cached"))): 0,
        ("supertiny_rollout_tokens", (STEP, ("kind", "completion"))): 9,
    }


def test_dollars_and_what_is_left_are_what_they_are_now(tmp_path: Path) -> None:
    spending = Spending(tmp_path / "spent.json", usd_per_hour=3600.0, endpoint_usd=0.25)
    tally = tally_of(tmp_path)
    found = dict(gauges(tally, spending, total=10))
    assert found["supertiny_rollout_usd", (("kind", "endpoint"),)] == 0.25
    assert found["supertiny_rollout_usd", (("kind", "reserved"),)] > 0
    assert found["supertiny_rollout_rows_left", ()] == 7
    assert found["supertiny_rollout_seconds_left", ()] > 0
    assert ("supertiny_rollout_budget_usd", ()) not in found
    spending.budget_usd = 40.0
    assert dict(gauges(tally, spending, total=10))["supertiny_rollout_budget_usd", ()] == 40.0
    assert ("supertiny_rollout_seconds_left", ()) not in dict(gauges(Tally(tmp_path, tmp_path), spending, total=10))


def test_every_rollouts_seconds_are_taken_once(tmp_path: Path) -> None:
    tally = tally_of(tmp_path)
    assert (tally.take_row_seconds(), tally.take_row_seconds()) == ([2.0, 2.0, 2.0], [])


def test_it_can_be_told_again_and_again_without_a_ray(tmp_path: Path) -> None:
    metrics, tally = RayMetrics("rollouts"), tally_of(tmp_path)
    for _ in range(2):
        metrics.tell(tally, Spending(tmp_path / "spent.json", 1.0), 10)
    assert metrics.told == {key: value for key, value in counts(tally).items() if value}


def test_every_metric_is_in_the_operators_table(checkout: Path) -> None:
    table = set(re.findall(r"ray_(supertiny_rollout_\w+)", (checkout / "docs" / "operations.md").read_text()))
    assert table == {f"{name}_total" for name in COUNTERS} | set(GAUGES) | {ROW_SECONDS}
