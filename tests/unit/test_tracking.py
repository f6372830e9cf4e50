"""Metrics by step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tensorboard_events import events_of

from supertiny.errors import ConfigError
from supertiny.tracking import JsonlTracker, MemoryTracker, Tracker, check_trackers, open_trackers, run_name


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


def test_tensorboard_gets_every_metric_and_hides_what_a_killed_run_logged_too_much(tmp_path: Path) -> None:
    first = open_trackers(["tensorboard"], tmp_path)
    for step in (1, 2, 3):
        first.log({"loss": 1 / step, "tokens": 8}, step)
    first.close()
    again = open_trackers(["tensorboard"], tmp_path, first_step=2)
    again.log({"loss": 0.25}, 3)
    again.close()
    before, after = (events_of(path) for path in sorted((tmp_path / "tensorboard").iterdir()))
    logged = [(event.step, {value.tag: value.simple_value for value in event.summary.value}) for event in before if event.summary.value]
    assert logged[0] == (1, {"loss": 1.0})
    assert [step for step, values in logged if "tokens" in values] == [1, 2, 3]
    assert [event.step for event in after if event.session_log.status] == [3]  # from this step on, the earlier file does not count
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4


def test_a_run_is_named_after_the_folder_that_it_fills(tmp_path: Path) -> None:
    assert run_name(tmp_path / ".distill.3f9a2c01.partial") == "distill.3f9a2c01"


def test_a_tracker_that_is_not_installed_is_refused_with_what_to_install() -> None:
    check_trackers(["tensorboard"])
    with pytest.raises(ConfigError, match=r"trackers: wandb is not installed; pip install 'supertiny\[wandb\]'"):
        check_trackers(["tensorboard", "wandb"])
