"""A rollout whose cluster loses its head: real raylets, a real Redis, a scripted engine."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_folder import ray_folder
from rollout_jobs import asked, wait_for_blocks
from started_nodes import Node, StartedNodes

from supertiny.artifacts import open_artifact
from supertiny.rollout_table import read_rejected, read_rollouts

pytestmark = [pytest.mark.soak, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]
PROMPTS, BLOCK, ENGINES = 120, 6, 2
HEAD_AWAY_SECONDS = 8
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
gpus_per_engine = 1
block_rows = {block}
blocks_in_flight = 1
no_progress_seconds = 120
"""


@pytest.fixture(scope="module")
def nodes(checkout: Path) -> Iterator[StartedNodes]:
    path = os.pathsep.join([str(checkout / "platform"), str(checkout / "tests")])
    with ray_folder() as folder, StartedNodes(folder, path, redis=True) as started:
        yield started


@pytest.fixture(scope="module")
def workers(nodes: StartedNodes) -> list[Node]:
    """Room for an engine, a GPU that is none, and a CPU for Ray Data's tasks each."""
    return nodes.add_workers(2, 3, 1)


def start(checkout: Path, root: Path, nodes: StartedNodes, where: Node) -> subprocess.Popen[bytes]:
    """The rollout job, its driver on a node."""
    config = root / "rollout.toml"
    config.write_text(CONFIG.format(root=root, prompts=PROMPTS, engines=ENGINES, block=BLOCK))
    return nodes.start_driver(where, [str(checkout / "jobs" / "rollout.py"), "--config", str(config)], root / "log")


def ended(job: subprocess.Popen[bytes], root: Path) -> None:
    """Wait for its good end."""
    try:
        assert job.wait(240) == 0, (root / "log").read_text()[-4000:]
    finally:
        job.kill()


def made(root: Path) -> list[str]:
    """Ids of the table, kept and rejected."""
    folder = open_artifact("rollouts", str(root), "rollouts").path
    return sorted(row.rollout_id.partition("/")[0] for row in read_rollouts(folder) + read_rejected(folder))


EVERY = [f"p{at:03d}" for at in range(PROMPTS)]


def test_a_rollout_whose_head_is_lost_ends_in_one_go_when_it_is_back(
    nodes: StartedNodes, workers: list[Node], checkout: Path, tmp_path: Path
) -> None:
    job = start(checkout, tmp_path, nodes, workers[0])
    try:
        before = wait_for_blocks(job, tmp_path, 2 * BLOCK)
        nodes.lose(nodes.head)
        time.sleep(HEAD_AWAY_SECONDS)  # nobody is there but the workers
        without = wait_for_blocks(job, tmp_path, 0)
        nodes.start_head()
    except BaseException:
        os.killpg(job.pid, signal.SIGKILL)
        raise
    ended(job, tmp_path)
    times = asked(tmp_path)
    alone, redone = len(without) - len(before), times.total() - PROMPTS
    print(f"\nthe head lost in rollout: {alone} rows finished in {HEAD_AWAY_SECONDS} s without it, {redone} redone")
    assert made(tmp_path) == EVERY
    assert set(times.values()) == {1}


def test_a_driver_that_is_lost_with_the_head_is_run_again_and_goes_on(
    nodes: StartedNodes, workers: list[Node], checkout: Path, tmp_path: Path
) -> None:
    job = start(checkout, tmp_path, nodes, nodes.head)
    try:
        before = wait_for_blocks(job, tmp_path, 4 * BLOCK)
    finally:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait(10)
    nodes.lose(nodes.head)
    nodes.start_head()
    began = time.monotonic()
    again = start(checkout, tmp_path, nodes, nodes.head)
    ended(again, tmp_path)
    times = asked(tmp_path)
    print(f"\nthe head and its driver lost: {len(before)} rows kept, {times.total() - PROMPTS} redone in {time.monotonic() - began:.0f} s")
    assert made(tmp_path) == EVERY
    assert {name: times[name.partition("/")[0]] for name in before} == dict.fromkeys(before, 1)
