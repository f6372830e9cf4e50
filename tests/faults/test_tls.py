"""TLS between the processes of two nodes, with certificates as `supertiny.certificates` makes them: real raylets."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ray.util import get_node_ip_address
from ray_folder import ray_folder
from started_nodes import StartedNodes

from supertiny.certificates import environment, make_authority, make_node

pytestmark = [pytest.mark.soak, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]
DRIVER = """
import ray
ray.init(address="{address}", logging_level="ERROR")
print(ray.get(ray.remote(num_cpus=1)(lambda: 6 * 7).remote()))
"""


def answer_to(address: str, settings: dict[str, str], seconds: float) -> str:
    """What a job's driver prints within this time; one that gets no connection keeps trying for minutes."""
    code = DRIVER.format(address=address)
    try:
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=seconds, check=False).stdout
    except subprocess.TimeoutExpired:
        return ""


def test_a_cluster_with_certificates_runs_tasks_and_answers_nobody_without(checkout: Path, tmp_path: Path) -> None:
    make_authority(tmp_path)
    make_node(tmp_path, [get_node_ip_address(), "127.0.0.2"])
    secured = environment(tmp_path)
    with (
        ray_folder() as folder,
        StartedNodes(folder, str(checkout / "platform"), environment=secured) as nodes,
    ):
        nodes.add_workers(1, 1)
        started = time.monotonic()
        assert answer_to(nodes.address, secured, 120).strip() == "42"
        seconds = 3 * (time.monotonic() - started)
        assert "42" not in answer_to(nodes.address, {"RAY_USE_TLS": "0"}, seconds)
