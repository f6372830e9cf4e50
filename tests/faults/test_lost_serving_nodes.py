"""What clients of a served application see while a machine under it is lost, the head too: real raylets, scripted engines."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from deployed import deploy
from ray_folder import ray_folder
from started_nodes import Node, StartedNodes
from tests.serving.load import Sent, clients, p99, replica_pids, wait_for

from supertiny.llm.config import ScriptedConfig
from supertiny.pipeline.local_cluster import _free_ports
from supertiny.serving.config import ArmConfig, ServeConfig

pytestmark = [pytest.mark.soak, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]
CLIENTS, REPLICAS = 8, 3
CPUS_OF_A_NODE = REPLICAS + 1
HEAD_AWAY_SECONDS = 10
STUDENT = ArmConfig(min_replicas=REPLICAS, max_replicas=REPLICAS, scripted=ScriptedConfig(answer="one two three", delay_seconds=0.2))
SETTINGS = ServeConfig(student_arm=STUDENT, teacher_arm=ArmConfig(scripted=ScriptedConfig(answer="teacher")), router_replicas=3)


@dataclass
class Served:
    """An application over a head and two workers, either of which could hold all of it."""

    nodes: StartedNodes
    workers: list[Node]
    url: str


@pytest.fixture(scope="module")
def app(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    path = os.pathsep.join([str(checkout / "platform"), str(checkout / "tests")])
    (port,) = _free_ports(1)
    with ray_folder() as folder, StartedNodes(folder, path, redis=True) as nodes:
        workers = nodes.add_workers(2, CPUS_OF_A_NODE)
        deploy(nodes.address, SETTINGS, port, path, tmp_path_factory.mktemp("deployed") / "log")
        yield Served(nodes, workers, f"http://127.0.0.1:{port}")


def judged(what: str, sent: list[Sent], moment: float, recovery: float) -> list[Sent]:
    """The requests that were not answered though no answer had begun, after a line of figures."""
    after = [each for each in sent if each.at + each.seconds > moment]
    cut = [each for each in after if not each.whole and each.begun]
    lost = [each for each in after if not each.whole and not each.begun]
    again = [each for each in after if each.tries > 1]
    slowest = max(each.seconds for each in after)
    print(
        f"\n{what}: {len(after)} requests since, {len(again)} asked again, {len(cut)} streams cut, {len(lost)} lost; "
        f"p99 {p99(after):.2f} s, slowest {slowest:.1f} s; back after {recovery:.1f} s"
    )
    return lost


def test_a_lost_worker_costs_no_request_that_was_not_yet_answering_and_its_replicas_come_back(app: Served) -> None:
    with clients(app.url, CLIENTS, stream_every=3, again=3) as sent:
        time.sleep(3)
        moment = time.monotonic()
        app.nodes.lose(app.workers.pop())
        recovery = wait_for("the replicas", lambda: len(replica_pids("student-engine")) == REPLICAS, 90)
        time.sleep(3)
        app.workers += app.nodes.add_workers(1, CPUS_OF_A_NODE)
    assert judged("a worker lost", sent, moment, recovery) == []


def test_requests_outlive_a_lost_head_and_when_it_is_back_replicas_are_replaced_again(app: Served) -> None:
    with clients(app.url, CLIENTS, stream_every=3, again=3) as sent:
        time.sleep(3)
        moment = time.monotonic()
        app.nodes.lose(app.nodes.head)
        time.sleep(HEAD_AWAY_SECONDS)
        without = time.monotonic()
        app.nodes.start_head()
        back = time.monotonic()
        os.kill(replica_pids("student-engine")[0], 9)  # somebody has to notice
        recovery = wait_for("the replica's successor", lambda: len(replica_pids("student-engine")) == REPLICAS, 120)
        time.sleep(3)
    meanwhile = [each for each in sent if each.whole and moment + 1 < each.at and each.at + each.seconds < without]
    print(f"\n{len(meanwhile)} answered in {HEAD_AWAY_SECONDS} s without a head; it took {back - without:.0f} s to start again")
    assert judged("the head lost", sent, moment, recovery) == []
    assert len([each for each in sent if each.whole and each.at > back]) > CLIENTS
