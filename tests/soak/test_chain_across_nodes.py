"""Rollout, then distillation of what it made, on a head and three workers; a worker is lost in each. A scripted teacher, a tiny student."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ray_folder import ray_folder
from rollout_jobs import asked, start_job, wait_for_blocks
from started_nodes import Node, StartedNodes
from tiny_rollouts import make_student
from train_runs import finished_checkpoints, name_of, wait_for

from supertiny.artifacts import open_artifact
from supertiny.rollout_table import read_rejected, read_rollouts
from supertiny.train.metrics import read_metrics

PROMPTS, BLOCK, ENGINES = 60, 5, 3
ROLLOUT = """
run_root = "{root}"
group_size = 1
[task]
path = "tiny_task:TinyTask"
options = {{ num_prompts = {prompts}, asked = "{root}/asked", seconds = 1.0 }}
[scripted]
[layout]
num_engines = [2, {engines}]
cpus_per_engine = 2
gpus_per_engine = 1
block_rows = {block}
blocks_in_flight = 1
no_progress_seconds = 120
"""
DISTILL = {
    **{"student": "base", "epochs": 20.0, "batch": 15, "micro_batch": 5, "learning_rate": 1e-3, "num_workers": 3},
    **{"checkpoint_every_steps": 10, "log_every_steps": 20, "stall_seconds": 60, "max_failures": 3, "trackers": []},
    "losses": {"cross_entropy": 1.0},  # a scripted teacher has no log-probabilities
    "task": {"path": "tiny_task:TinyTask", "options": {"num_prompts": PROMPTS, "asked": os.devnull, "seconds": 0.0}},
}


def has_work(node: Node) -> bool:
    """Whether a training worker lives there."""
    return any("RayTrainWorker" in name_of(each) for each in node.family())


def ended(job: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for a job's good end."""
    try:
        assert job.wait(240) == 0, log.read_text()[-4000:]
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_chain_comes_to_its_end_though_a_node_is_lost_in_each_stage(checkout: Path, tmp_path: Path) -> None:
    path = os.pathsep.join([str(checkout / "platform"), str(checkout / "tests")])
    make_student(tmp_path)
    (tmp_path / "rollout.toml").write_text(ROLLOUT.format(root=tmp_path, prompts=PROMPTS, engines=ENGINES, block=BLOCK))
    folder = ray_folder()
    with folder, StartedNodes(folder.name, path) as nodes:
        workers = nodes.add_workers(3, 3, 1)
        job = start_job(checkout, tmp_path / "rollout.toml", tmp_path / "log", nodes.address)
        before = wait_for_blocks(job, tmp_path, 2 * BLOCK)
        nodes.lose(workers.pop())
        workers += nodes.add_workers(1, 3, 1)  # as an autoscaler would
        ended(job, tmp_path / "log")

        settings = [f"--set={key}={_toml(value)}" for key, value in {"run_root": str(tmp_path), **DISTILL}.items()]
        environment = {**os.environ, "RAY_ADDRESS": nodes.address, "PYTHONPATH": path}
        with (tmp_path / "log").open("ab") as log:
            command = [sys.executable, str(checkout / "jobs" / "distill.py"), *settings]
            job = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        wait_for(lambda: finished_checkpoints(tmp_path), job)
        (checkpoint, *_), lost = finished_checkpoints(tmp_path), next(node for node in workers if has_work(node))
        nodes.lose(lost)
        killed = time.monotonic()
        nodes.add_workers(1, 3, 1)
        ended(job, tmp_path / "log")

    times = asked(tmp_path)
    seconds = time.monotonic() - killed
    print(f"\n{times.total() - PROMPTS} of {PROMPTS} rows redone; trained on from step {checkpoint}, done {seconds:.0f} s after the loss")
    rollouts = open_artifact("rollouts", str(tmp_path), "rollouts").path
    assert len(read_rollouts(rollouts) + read_rejected(rollouts)) == PROMPTS
    assert {times[name.partition("/")[0]] for name in before} == {1}
    student = open_artifact("distill", str(tmp_path), "model")
    assert student.manifest.parents["rollouts"].uri.endswith("rollouts")
    steps = [int(row["step"]) for row in read_metrics(student.path / "metrics.jsonl")]
    assert steps == list(range(1, steps[-1] + 1))


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + "}"
    return json.dumps(value)
