"""Several replicas of the student on one GPU: the real application with scripted engines, on a simulated machine with a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]
SERVE = """
import ray
from supertiny.llm.config import ScriptedConfig
from supertiny.serving.config import ArmConfig, ServeConfig
from supertiny.serving.port import free_port
from supertiny.serving.run import served

said = ScriptedConfig(answer="the student")
gpu = {"supertiny/group": "student"}
ray.init("local", num_cpus=8, num_gpus=1, labels=gpu, log_to_driver=False, logging_level="error", include_dashboard=False)
student = ArmConfig(scripted=said, num_gpus=0.25, gpu_memory_utilization=0.22, min_replicas=4, max_replicas=4, labels=gpu)
with served(ServeConfig(student_arm=student, teacher_arm=ArmConfig(scripted=said)), port=free_port()):
    print("GPU left:", ray.available_resources().get("GPU", 0.0), flush=True)
"""


def test_four_replicas_of_a_quarter_take_one_gpu_and_no_more(checkout: Path) -> None:
    ran = subprocess.run([sys.executable, "-c", SERVE], capture_output=True, text=True, check=False, timeout=240)
    assert "GPU left: 0.0" in ran.stdout, ran.stdout + ran.stderr[-3000:]
