"""What Ray's own autoscaler says of a plan that no group of machines can hold."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from growing_cluster import GrowingCluster
from growing_jobs import rollout

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_plan_that_no_group_can_ever_hold_ends_with_the_reason(checkout: Path, growing: GrowingCluster, tmp_path: Path) -> None:
    began = time.monotonic()
    assert rollout(checkout, growing, tmp_path / "rollout", 4) == 1
    said = (tmp_path / "rollout" / "log").read_text()
    assert re.search(r"PlanTooBig: rollout needs .* and no autoscaler can add nodes for it", said), said[-2000:]
    print(f"\nrefused after {time.monotonic() - began:.0f} s")
