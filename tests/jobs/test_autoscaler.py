"""What Ray's own autoscaler says of a plan that no group of machines can hold."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from growing_cluster import GrowingCluster
from growing_jobs import GROUPS, IDLE_SECONDS, rollout
from ray_folder import ray_folder

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster(checkout: Path) -> Iterator[GrowingCluster]:
    path = os.pathsep.join([str(checkout / "platform"), str(checkout / "tests")])
    with ray_folder() as folder, GrowingCluster(GROUPS, folder, path, idle_seconds=IDLE_SECONDS) as growing:
        yield growing


def test_a_plan_that_no_group_can_ever_hold_ends_with_the_reason(checkout: Path, cluster: GrowingCluster, tmp_path: Path) -> None:
    began = time.monotonic()
    assert rollout(checkout, cluster, tmp_path / "rollout", 4) == 1
    said = (tmp_path / "rollout" / "log").read_text()
    assert re.search(r"PlanTooBig: rollout needs .* and no autoscaler can add nodes for it", said), said[-2000:]
    print(f"\nrefused after {time.monotonic() - began:.0f} s")
