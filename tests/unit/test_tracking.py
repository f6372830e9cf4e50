"""Metrics by step."""

from __future__ import annotations

import json
from pathlib import Path

from supertiny.tracking import JsonlTracker, MemoryTracker, Tracker


def test_lines_are_added_one_object_a_step_also_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    JsonlTracker(path).log({"loss": 0.5}, step=1)
    JsonlTracker(path).log({"loss": 0.25, "tokens": 3}, step=2)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 0.25, "tokens": 3},
    ]


def test_a_line_is_on_disk_when_log_returns(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path)
    tracker.log({"loss": 1.0}, step=1)
    assert path.read_text().endswith("}\n")


def test_the_fake_keeps_what_the_real_one_writes(tmp_path: Path) -> None:
    memory, path = MemoryTracker(), tmp_path / "metrics.jsonl"
    trackers: list[Tracker] = [memory, JsonlTracker(path)]
    for tracker in trackers:
        tracker.log({"loss": 0.5}, step=1)
    assert memory.records == [json.loads(line) for line in path.read_text().splitlines()]
