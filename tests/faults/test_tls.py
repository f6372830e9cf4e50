"""TLS between the processes of two nodes, with certificates as `supertiny.certificates` makes them: real raylets."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from ray.util import get_node_ip_address
from started_nodes import StartedNodes

from supertiny.certificates import environment, make_authority, make_node

pytestmark = [pytest.mark.soak, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]
DRIVER = """
import ray
ray.init(address="{address}", logging_level="ERROR")
print(ray.get(ray.remote(num_cpus=1)(lambda: 6 * 7).remote()))
"""


def run_driver(address: str, settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A job's driver, which waits some seconds for a head that does not answer it."""
    settings = {**os.environ, "RAY_gcs_rpc_server_connect_timeout_s": "5", **settings}
    code = DRIVER.format(address=address)
    return subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True, timeout=120, check=False)


def test_a_cluster_with_certificates_runs_tasks_and_answers_nobody_without(checkout: Path, tmp_path: Path) -> None:
    make_authority(tmp_path)
    make_node(tmp_path, [get_node_ip_address(), "127.0.0.2"])
    secured = environment(tmp_path)
    with (
        tempfile.TemporaryDirectory(prefix="st-") as folder,
        StartedNodes(folder, str(checkout / "platform"), environment=secured) as nodes,
    ):
        nodes.add_workers(1, 1)
        ours, stranger = run_driver(nodes.address, secured), run_driver(nodes.address, {"RAY_USE_TLS": "0"})
    assert ours.stdout.strip() == "42", ours.stderr[-2000:]
    assert stranger.returncode != 0
    assert "42" not in stranger.stdout
