"""Training whose node is lost, with a notice and without: real raylets, one a node, each with one worker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ray_folder import ray_folder
from simulated_cluster import SimulatedCluster
from tiny_rollouts import assistant_tokenizer, gold_rollouts, make_student, publish_rollouts
from train_runs import finished_checkpoints, wait_for

from supertiny.artifacts import open_artifact
from supertiny.drain import announce
from supertiny.train.metrics import read_metrics

pytestmark = [pytest.mark.soak, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
NUM_STEPS = 160
NOTICE_SECONDS = 30
SETTINGS: dict[str, Any] = {
    **{"student": "base", "epochs": 40.0, "batch": 16, "micro_batch": 8, "learning_rate": 1e-3, "num_workers": 2},
    **{"log_every_steps": 20, "stall_seconds": 60, "max_failures": 3, "trackers": []},
}
"""64 rows: 4 steps a pass."""


@dataclass
class Nodes:
    """A cluster of two nodes with a worker each, and their raylets."""

    cluster: SimulatedCluster
    head: int
    second: int

    def replace_second(self) -> None:
        """As an autoscaler would."""
        self.second = self.cluster.add_node(1)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    make_student(root)
    publish_rollouts(root, gold_rollouts(assistant_tokenizer(), 64))
    return root


@pytest.fixture(scope="module")
def nodes(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    log = tmp_path_factory.mktemp("cluster") / "log"
    with ray_folder() as folder, SimulatedCluster(folder, str(checkout / "platform"), log) as cluster:
        yield Nodes(cluster, cluster.add_node(1), cluster.add_node(1))


class Run:
    """A distillation on the cluster, as a job's driver would start it."""

    def __init__(self, checkout: Path, inputs: Path, root: Path, address: str, **settings: Any) -> None:
        self.root = root
        for name in ("base", "rollouts"):
            (root / name).symlink_to(inputs / name)
        toml = root / "distill.toml"
        values = {**SETTINGS, **settings, "run_root": str(root)}
        toml.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
        environment = {**os.environ, "RAY_ADDRESS": address, "PYTHONPATH": str(checkout / "platform")}
        with (root / "log").open("ab") as log:
            command = [sys.executable, str(checkout / "jobs" / "distill.py"), "--config", str(toml)]
            self.driver = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def steps(self) -> int:
        """The last step in the metrics of the unfinished stage."""
        metrics = next(self.root.glob(".distill.*.partial/metrics.jsonl"), None)
        return len(metrics.read_text().splitlines()) if metrics else 0

    def finish(self) -> list[int]:
        """The steps of the finished run's metrics."""
        try:
            assert self.driver.wait(300) == 0, (self.root / "log").read_text()[-4000:]
        finally:
            self.driver.kill()
        return [int(row["step"]) for row in read_metrics(open_artifact("distill", str(self.root), "model").path / "metrics.jsonl")]


def test_after_a_notice_there_is_a_checkpoint_in_time_and_at_most_a_step_is_lost(
    nodes: Nodes, checkout: Path, inputs: Path, tmp_path: Path, record_property: Any
) -> None:
    run = Run(checkout, inputs, tmp_path, nodes.cluster.address, spot=True, checkpoint_every_steps=10_000)
    try:
        wait_for(lambda: run.steps() >= 20, run.driver)
        noticed = time.monotonic()
        announce(nodes.cluster.node_ids[nodes.second], nodes.cluster.address, NOTICE_SECONDS, "a test")
        wait_for(lambda: finished_checkpoints(tmp_path), run.driver, NOTICE_SECONDS)
        seconds = time.monotonic() - noticed
        (checkpoint,) = finished_checkpoints(tmp_path)
        time.sleep(max(0, NOTICE_SECONDS - seconds))  # the machine's last moment
        lost = run.steps() - checkpoint
        os.kill(nodes.second, signal.SIGKILL)
        nodes.replace_second()
    except BaseException:
        os.killpg(run.driver.pid, signal.SIGKILL)
        raise
    assert run.finish() == list(range(1, NUM_STEPS + 1))
    record_property("seconds_to_checkpoint", round(seconds, 1))
    record_property("steps_lost", lost)
    print(f"\nnotice: a checkpoint after {seconds:.1f} s, {lost} steps lost")
    assert checkpoint >= 20
    assert lost <= 1


def test_a_node_that_is_lost_without_notice_costs_the_steps_since_the_last_checkpoint(
    nodes: Nodes, checkout: Path, inputs: Path, tmp_path: Path
) -> None:
    run = Run(checkout, inputs, tmp_path, nodes.cluster.address, checkpoint_every_steps=20)
    try:
        wait_for(lambda: finished_checkpoints(tmp_path), run.driver)
        wait_for(lambda: run.steps() > max(finished_checkpoints(tmp_path)), run.driver)
        lost = run.steps() - max(finished_checkpoints(tmp_path))
        killed = time.monotonic()
        os.kill(nodes.second, signal.SIGKILL)
        nodes.replace_second()
    except BaseException:
        os.killpg(run.driver.pid, signal.SIGKILL)
        raise
    assert run.finish() == list(range(1, NUM_STEPS + 1))
    print(f"\nno notice: {lost} steps redone, finished {time.monotonic() - killed:.0f} s after the loss")
    assert lost <= 21
