"""24 hours of a served application on nodes that come with the load and are lost every half an hour; time runs 60 times as fast.

Everything is real but the clouds and the engines: Ray's autoscaler starts raylets of this machine, Serve scales scripted replicas, one
a node. What time it takes to start a node or a replica is not compressed, so it costs 60 times as much here as in a real day.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from day import Day, Fleet, every, load, plot
from deployed import deploy
from growing_cluster import GrowingCluster
from ray_folder import ray_folder
from tests.serving.load import Sent, p99, replica_pids, wait_for

from supertiny.llm.config import ScriptedConfig
from supertiny.pipeline.local_cluster import _free_ports
from supertiny.serving.config import ArmConfig, ServeConfig

DAY = Day(hours=float(os.environ.get("SUPERTINY_SOAK_HOURS", "24")), hour_seconds=60, lowest=2, highest=8)
LOSS_SECONDS = DAY.hour_seconds / 2
ANSWER_SECONDS, TARGET, MOST = 1.0, 4, 4
"""What an answer takes, the requests a replica that autoscaling aims at, and the most replicas."""
GROUPS = {"student": {"resources": {"CPU": 1}, "min_workers": 0, "max_workers": MOST}}
STUDENT = ArmConfig(
    min_replicas=2,  # one may be lost
    max_replicas=MOST,
    target_ongoing_requests=TARGET,
    max_ongoing_requests=2 * TARGET,
    max_queued_requests=64,
    upscale_seconds=5,  # a loss alone, noticed after 3 s, is no reason for more
    downscale_seconds=15,
    scripted=ScriptedConfig(answer="one two three four five", delay_seconds=ANSWER_SECONDS),
)
TEACHER = ArmConfig(min_replicas=0, scripted=ScriptedConfig(answer="teacher"))  # nobody asks it
SETTINGS = ServeConfig(student_arm=STUDENT, teacher_arm=TEACHER, router_replicas=2, routers_per_node=1)
RAY = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3", "RAY_health_check_initial_delay_ms": "2000"}
"""A dead node is noticed in some 3 s instead of 15 or more."""


class Losses:
    """Kills a worker node at a time, chosen by lot."""

    def __init__(self, cluster: GrowingCluster, fleet: Fleet, midnight: float) -> None:
        self._cluster, self._fleet, self._midnight, self._lot = cluster, fleet, midnight, random.Random(0)

    def lose(self) -> None:
        """All of its processes at once."""
        if nodes := self._cluster.workers():
            node = self._lot.choice(sorted(nodes, key=lambda each: each.pid))
            self._fleet.losses.append(time.monotonic() - self._midnight)
            for process in [node, *node.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()

    def count(self) -> None:
        """Note how many nodes there are."""
        self._fleet.nodes.append((time.monotonic() - self._midnight, len(self._cluster.workers())))


def figures(sent: Sequence[Sent], fleet: Fleet, midnight: float) -> dict[str, float]:
    """What is printed and judged. The fixed fleet has a node for each replica that the busiest hour needs, and one to spare."""
    fixed = math.ceil(DAY.highest * ANSWER_SECONDS / TARGET) + 1
    quarters: dict[int, list[bool]] = {}
    for each in sent:
        quarters.setdefault(int(DAY.minutes(each.at - midnight) // 15), []).append(each.whole)
    return {
        "simulated_hours": DAY.hours,
        "nodes_lost": len(fleet.losses),
        "requests": len(sent),
        "availability": sum(each.whole for each in sent) / len(sent),
        "availability_without_sending_again": sum(each.whole and each.tries == 1 for each in sent) / len(sent),
        "failed": sum(not each.whole for each in sent),
        "failed_before_the_answer_began": sum(not each.whole and not each.begun for each in sent),
        "streams_cut": sum(not each.whole and each.begun for each in sent),
        "refused": sum(each.status in (429, 503) for each in sent),
        "worst_quarter_of_an_hour": min(sum(whole) / len(whole) for whole in quarters.values()),
        "p99_seconds": p99(sent),
        "node_hours": fleet.node_seconds() / DAY.hour_seconds,
        "fixed_fleet_node_hours": fixed * DAY.hours,
        "cost_against_fixed_fleet": fleet.node_seconds() / DAY.hour_seconds / (fixed * DAY.hours),
    }


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_day_of_losses_costs_no_more_than_the_streams_under_way(checkout: Path, tmp_path: Path) -> None:
    path = os.pathsep.join([str(checkout / "platform"), str(checkout / "tests")])
    (port,) = _free_ports(1)
    folder = ray_folder()
    with folder, GrowingCluster(GROUPS, folder.name, path, idle_seconds=8, max_workers=MOST, environment=RAY) as cluster:
        deploy(cluster.address, SETTINGS, port, path, tmp_path / "deploy.log", proxies="HeadOnly")
        wait_for("the first replicas", lambda: len(replica_pids("student-engine")) == STUDENT.min_replicas, 120)
        midnight, fleet = time.monotonic(), Fleet()
        losses = Losses(cluster, fleet, midnight)
        url = f"http://127.0.0.1:{port}"
        with every(1, losses.count), load(url, DAY, again=4) as sent, every(LOSS_SECONDS, losses.lose):
            time.sleep(DAY.seconds)
        logs = next(Path(folder.name).glob("ray/session_2*/logs"))
        shutil.copytree(logs, tmp_path / "logs")  # to read where the promise was not kept
    found = figures(sent, fleet, midnight)
    print("\n" + json.dumps({name: round(value, 4) for name, value in found.items()}), flush=True)
    plot(Path(os.environ.get("SUPERTINY_SOAK_PLOT", tmp_path / "day.png")), DAY, fleet, sent, midnight)
    assert found["nodes_lost"] >= 2 * DAY.hours - 2
    assert found["availability"] > 0.99
    assert found["cost_against_fixed_fleet"] < 1
