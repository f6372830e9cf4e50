"""Metrics of rollouts and trainings as Prometheus would scrape them from Ray."""

from __future__ import annotations

import time
import urllib.request
from pathlib import Path

import pytest

from supertiny.rollout.metrics import RayMetrics
from supertiny.rollout.progress import Tally
from supertiny.rollout.spending import Spending
from supertiny.train.metrics import resume_trackers

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def scrape() -> list[str]:
    """Every line that the driver's node exports."""
    import ray

    (node,) = [node for node in ray.nodes() if node["Alive"]]
    with urllib.request.urlopen(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=10) as page:
        return str(page.read().decode()).splitlines()


def wait_for_line(metric: str, tag: str, value: str) -> None:
    """Wait until a metric has the value; Ray's processes report now and then."""
    for _ in range(60):
        found = [line for line in scrape() if line.startswith(f"{metric}{{")]
        if any(tag in line and line.endswith(f" {value}") for line in found):
            return
        time.sleep(1)
    raise AssertionError(f"not exported within a minute: {found}")


def test_a_scrape_has_the_rows_of_finished_blocks(tmp_path: Path) -> None:
    tally = Tally(tmp_path / "blocks", tmp_path / "done", rollouts=3, accepted=3)
    RayMetrics("scraped").tell(tally, Spending(tmp_path / "spent.json", 1.0), 10)
    wait_for_line("ray_supertiny_rollout_rows_done_total", 'rollouts="scraped"', "3.0")


def test_a_scrape_has_the_steps_that_a_training_has_left(tmp_path: Path) -> None:
    folder = tmp_path / ".distill.3f9a2c01.partial"
    folder.mkdir()
    trackers = resume_trackers([], folder, first_step=4, num_steps=10)
    wait_for_line("ray_supertiny_train_steps_left", 'run="distill.3f9a2c01"', "6.0")
    trackers.log({"loss": 1.0}, 5)
    wait_for_line("ray_supertiny_train_steps_left", 'run="distill.3f9a2c01"', "5.0")
