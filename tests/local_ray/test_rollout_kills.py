"""Rollouts whose driver, engine and node are killed, against the table of one that was left alone. A scripted engine answers."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ray_folder import ray_folder
from rollout_jobs import asked, start_job, wait_for_block_of, wait_for_blocks
from simulated_cluster import SimulatedCluster, engine_on

from supertiny.artifacts import open_artifact
from supertiny.rollout.blocks import finished_ids
from supertiny.rollout_table import read_rejected, read_rollouts

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
PROMPTS, BLOCK, ENGINES = 150, 6, 2
CPUS_OF_A_NODE = 3
"""An engine takes two, so that a node has one engine and a CPU for Ray Data's tasks."""
CONFIG = """
run_root = "{root}"
group_size = 1

[task]
path = "tiny_task:TinyTask"
options = {{ num_prompts = {prompts}, asked = "{root}/asked", seconds = 1.0 }}

[scripted]

[layout]
num_engines = {engines}
cpus_per_engine = 2
block_rows = {block}
blocks_in_flight = 1
no_progress_seconds = 120
log_every_seconds = 1
"""


@dataclass
class Nodes:
    """A cluster of two nodes, and the process ids of their raylets."""

    cluster: SimulatedCluster
    head: int
    second: int


@dataclass
class Job:
    """A rollout on the cluster, in a folder of its own."""

    checkout: Path
    root: Path
    address: str

    def start(self) -> subprocess.Popen[bytes]:
        self.root.mkdir(exist_ok=True)
        config = self.root / "rollout.toml"
        config.write_text(CONFIG.format(root=self.root, prompts=PROMPTS, engines=ENGINES, block=BLOCK))
        return start_job(self.checkout, config, self.root / "log", self.address)

    def finish(self, process: subprocess.Popen[bytes]) -> None:
        try:
            assert process.wait(240) == 0, (self.root / "log").read_text()[-3000:]
        finally:
            process.kill()

    def finished(self) -> set[str]:
        """Ids in finished blocks."""
        return finished_ids(next(self.root.glob(".rollouts.*.partial/.done")))

    def table(self) -> list[tuple[Any, ...]]:
        """Everything that was made, without the times that it took."""
        folder = open_artifact("rollouts", str(self.root), "rollouts").path
        rows = sorted(read_rollouts(folder) + read_rejected(folder), key=lambda row: row.rollout_id)
        return [(row.rollout_id, row.index, row.prompt, row.completion, row.verdict) for row in rows]


@pytest.fixture(scope="module")
def nodes(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    path = os.pathsep.join([str(checkout / "platform"), str(checkout / "tests")])
    log = tmp_path_factory.mktemp("cluster") / "log"
    with ray_folder() as folder, SimulatedCluster(folder, path, log) as cluster:
        yield Nodes(cluster, cluster.add_node(CPUS_OF_A_NODE), cluster.add_node(CPUS_OF_A_NODE))


@pytest.fixture(scope="module")
def whole(nodes: Nodes, checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    """The table of a rollout that nobody disturbed."""
    job = Job(checkout, tmp_path_factory.mktemp("whole"), nodes.cluster.address)
    job.finish(job.start())
    assert asked(job.root) == {f"p{at:03d}": 1 for at in range(PROMPTS)}
    return job.table()


def wait_for_engine(raylet: int) -> int:
    """The process id of the engine's actor on a node, as soon as there is one."""
    for _ in range(600):
        if engine := engine_on(raylet):
            return engine
        time.sleep(0.1)
    raise AssertionError("no engine on this node within a minute")


def test_a_rollout_whose_driver_is_killed_and_run_again_makes_the_same_table(
    nodes: Nodes, whole: list[tuple[Any, ...]], checkout: Path, tmp_path: Path
) -> None:
    job = Job(checkout, tmp_path, nodes.cluster.address)
    process = job.start()
    try:
        wait_for_blocks(process, tmp_path, 4 * BLOCK)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
    before = job.finished()
    assert 0 < len(before) < PROMPTS

    job.finish(job.start())
    assert job.table() == whole
    times = asked(tmp_path)
    assert {name: times[name.partition("/")[0]] for name in before} == dict.fromkeys(before, 1)


def test_a_rollout_whose_engine_and_then_a_node_are_killed_makes_the_same_table_in_one_go(
    nodes: Nodes, whole: list[tuple[Any, ...]], checkout: Path, tmp_path: Path
) -> None:
    job = Job(checkout, tmp_path, nodes.cluster.address)
    process = job.start()
    try:
        wait_for_blocks(process, tmp_path, 2 * BLOCK)
        engines = wait_for_engine(nodes.head), wait_for_engine(nodes.second)
        before_engine = job.finished()
        wait_for_block_of(engines[0], tmp_path)
        os.kill(engines[0], signal.SIGKILL)
        wait_for_blocks(process, tmp_path, len(before_engine) + 4 * BLOCK)
        before_node = job.finished()
        assert len(before_node) < PROMPTS
        wait_for_block_of(engines[1], tmp_path)
        os.kill(nodes.second, signal.SIGKILL)
        nodes.second = nodes.cluster.add_node(CPUS_OF_A_NODE)  # as an autoscaler would replace it
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    job.finish(process)

    assert job.table() == whole
    times = asked(tmp_path)
    assert {name: times[name.partition("/")[0]] for name in before_engine} == dict.fromkeys(before_engine, 1)
    assert max(times[name.partition("/")[0]] for name in before_node) <= 2  # the first kill's, never the second's
    redone = times.total() - PROMPTS
    assert 0 < redone <= 2 * ENGINES * BLOCK  # two kills, and a block in flight on each engine
