"""Groups of simulated machines, and a rollout that asks for those of the teacher."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from growing_cluster import GrowingCluster
from rollout_jobs import start_job

IDLE_SECONDS = 15
GROUPS = {
    "data": {"resources": {"CPU": 2}, "labels": {"supertiny/group": "data"}, "min_workers": 0, "max_workers": 1},
    "teacher": {"resources": {"CPU": 6, "GPU": 2}, "labels": {"supertiny/group": "teacher"}, "min_workers": 0, "max_workers": 2},
    "train": {"resources": {"CPU": 2, "GPU": 1}, "labels": {"supertiny/group": "train"}, "min_workers": 0, "max_workers": 1},
    "student": {"resources": {"CPU": 4, "GPU": 1}, "labels": {"supertiny/group": "student"}, "min_workers": 0, "max_workers": 1},
}
ROLLOUT = """
run_root = "{root}"
group_size = 1
[task]
path = "tiny_task:TinyTask"
options = {{ num_prompts = 60, asked = "{root}/asked", seconds = 0.5 }}
[scripted]
[layout]
num_engines = [1, 2]
cpus_per_engine = 2
gpus_per_engine = {gpus}
labels = {{ "supertiny/group" = "teacher" }}
block_rows = 6
blocks_in_flight = 1
no_progress_seconds = 240
"""


def rollout(checkout: Path, cluster: GrowingCluster, root: Path, gpus: int) -> int:
    """The exit status of a rollout job; its log lies in `root`."""
    root.mkdir(exist_ok=True)
    (root / "rollout.toml").write_text(ROLLOUT.format(root=root, gpus=gpus))
    job = start_job(checkout, root / "rollout.toml", root / "log", cluster.address)
    return ended(job)


def ended(job: subprocess.Popen[Any], limit_seconds: float = 240) -> int:
    """The exit status of a job, which is killed where it takes too long."""
    try:
        return job.wait(limit_seconds)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
