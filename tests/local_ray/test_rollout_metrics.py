"""A rollout's metrics as Prometheus would scrape them from Ray."""

from __future__ import annotations

import time
import urllib.request
from pathlib import Path

import pytest

from supertiny.rollout.metrics import RayMetrics
from supertiny.rollout.progress import Tally
from supertiny.rollout.spending import Spending


def scrape() -> str:
    """Everything that the driver's node exports."""
    import ray

    (node,) = [node for node in ray.nodes() if node["Alive"]]
    with urllib.request.urlopen(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=10) as page:
        return str(page.read().decode())


@pytest.mark.ray
def test_a_scrape_has_the_rows_of_finished_blocks(tmp_path: Path, local_ray: None) -> None:
    tally = Tally(tmp_path / "blocks", tmp_path / "done", rollouts=3, accepted=3)
    RayMetrics("scraped").tell(tally, Spending(tmp_path / "spent.json", 1.0), 10)
    for _ in range(60):  # Ray's processes report now and then
        rows = [line for line in scrape().splitlines() if line.startswith("ray_supertiny_rollout_rows_done_total{")]
        if any('rollouts="scraped"' in line and line.endswith(" 3.0") for line in rows):
            return
        time.sleep(1)
    raise AssertionError(f"not exported within a minute: {rows}")
