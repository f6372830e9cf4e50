"""Ray's own autoscaler brings up what each stage asks for and takes it away again: real raylets, started by its fake provider."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from deployed import deploy
from growing_cluster import GrowingCluster
from growing_jobs import GROUPS, ended, rollout
from tests.serving.load import Sent, clients, replica_pids
from tiny_rollouts import assistant_tokenizer, gold_rollouts, make_student, publish_rollouts
from train_runs import wait_for

from supertiny.llm.config import ScriptedConfig
from supertiny.pipeline.local_cluster import _free_ports
from supertiny.serving.config import ArmConfig, ServeConfig

pytestmark = [pytest.mark.soak, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
WATCH = """
import json, sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="error")
while True:
    pools = [node["Labels"].get("supertiny/group") for node in ray.nodes() if node["Alive"]]
    print(json.dumps([time.time(), [pool for pool in pools if pool]]), flush=True)
    time.sleep(0.5)
"""
QUARTER: dict[str, Any] = {"num_gpus": 0.25, "gpu_memory_utilization": 0.22, "min_replicas": 4, "max_replicas": 4}
SAID = ScriptedConfig(answer="one two three")
SERVED = ServeConfig(
    student_arm=ArmConfig(scripted=SAID, labels={"supertiny/group": "student"}, **QUARTER),
    teacher_arm=ArmConfig(scripted=SAID, labels={"supertiny/group": "teacher"}, num_gpus=1),
)
"""What cluster/kuberay/overlays/gpu/service says of places."""


class Trace:
    """Which pools had how many nodes, and when."""

    def __init__(self, address: str, folder: Path) -> None:
        self._path = folder / "trace"
        with self._path.open("w") as output:
            self._process = subprocess.Popen([sys.executable, "-c", WATCH, address], stdout=output, stderr=subprocess.DEVNULL)

    def end(self) -> None:
        self._process.kill()

    def points(self) -> list[tuple[float, dict[str, int]]]:
        """Seconds since the first look, and nodes by pool."""
        rows = [json.loads(line) for line in self._path.read_text().splitlines() if line.endswith("]]")]
        return [(at - rows[0][0], {pool: pools.count(pool) for pool in GROUPS}) for at, pools in rows]

    def at(self, seconds: float) -> dict[str, int]:
        """Nodes by group then."""
        return [nodes for at, nodes in self.points() if at <= seconds][-1]

    def first(self, pool: str) -> float:
        """When the pool got its first node."""
        return next((at for at, nodes in self.points() if nodes[pool]), float("inf"))

    def plot(self, path: Path, marks: dict[str, float]) -> None:
        """Nodes by pool over time, with the stages' ends."""
        import matplotlib as mpl

        mpl.use("agg")
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(8, 3))
        points = self.points()
        for pool in GROUPS:
            axes.step([at for at, _ in points], [nodes[pool] for _, nodes in points], where="post", label=pool)
        for name, at in marks.items():
            axes.axvline(at, color="grey", linewidth=0.8, linestyle=":")
            axes.text(at, 2.05, name, fontsize=7, ha="right")
        axes.set(xlabel="seconds", ylabel="nodes", yticks=[0, 1, 2])
        axes.legend()
        figure.tight_layout()
        figure.savefig(path, dpi=80)
        plt.close(figure)


def distill(checkout: Path, cluster: GrowingCluster, root: Path) -> int:
    """The exit status of a distillation with two workers of the pool `train`."""
    make_student(root)
    publish_rollouts(root, gold_rollouts(assistant_tokenizer(), 16))
    settings = ["student=base", "epochs=1", "batch=4", "micro_batch=2", 'labels={"supertiny/group"="train"}', "start_limit_seconds=120"]
    command = [sys.executable, str(checkout / "jobs" / "distill.py"), *(f"--set={each}" for each in [f"run_root={root}", *settings])]
    environment = {**os.environ, "RAY_ADDRESS": cluster.address, "PYTHONPATH": str(checkout / "platform")}
    with (root / "log").open("ab") as log:
        return ended(subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True))


def serve(checkout: Path, cluster: GrowingCluster, folder: Path) -> list[Sent]:
    """What clients of supertiny's own application were answered, with four replicas of the student on one GPU; taken down again."""
    (port,) = _free_ports(1)
    deploy(cluster.address, SERVED, port, str(checkout / "platform"), folder / "deploy.log")
    with clients(f"http://127.0.0.1:{port}", 4) as sent:
        time.sleep(2)
    raylets = [psutil.Process(pid).ppid() for pid in replica_pids("student-engine")]
    assert (len(raylets), len(set(raylets))) == (4, 1)
    command = [str(Path(sys.executable).with_name("serve")), "shutdown", "--yes", "--address", cluster.dashboard_url]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return sent


def test_each_stage_s_demand_brings_up_its_nodes_and_idle_ones_leave(checkout: Path, growing: GrowingCluster, tmp_path: Path) -> None:
    trace = Trace(growing.address, tmp_path)
    ends: dict[str, float] = {}
    try:
        wait_for(lambda: trace.points())
        assert rollout(checkout, growing, tmp_path / "rollout", 2) == 0, (tmp_path / "rollout" / "log").read_text()[-3000:]
        ends["rollout"] = trace.points()[-1][0]
        (tmp_path / "train").mkdir()
        assert distill(checkout, growing, tmp_path / "train") == 0, (tmp_path / "train" / "log").read_text()[-3000:]
        ends["training"] = trace.points()[-1][0]
        assert all(each.whole for each in serve(checkout, growing, tmp_path))
        ends["serving"] = trace.points()[-1][0]
        wait_for(lambda: not any(trace.points()[-1][1].values()), limit_seconds=120)
    finally:
        trace.end()
        trace.plot(Path(os.environ.get("SUPERTINY_TRACE", tmp_path / "trace.png")), ends)
    assert min(GROUPS, key=trace.first) == "teacher"
    demanded = {"rollout": {"teacher": 2}, "training": {"train": 1}, "serving": {"student": 1, "teacher": 1}}
    assert {stage: {group: trace.at(ends[stage])[group] for group in groups} for stage, groups in demanded.items()} == demanded
    # Ray Data demands more than it has without the rollout's labels, so other groups may have a node meanwhile; see docs/reliability.md
    assert max(nodes["teacher"] for _, nodes in trace.points()) == 2  # while blocks wait, a second one comes
    assert max(nodes["train"] for _, nodes in trace.points()) == max(nodes["student"] for _, nodes in trace.points()) == 1
    print("\n" + "; ".join(f"{pool} at {trace.first(pool):.0f} s" for pool in GROUPS), ends, f"all gone at {trace.points()[-1][0]:.0f} s")
