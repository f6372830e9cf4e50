"""Three raylets, as three machines would be: the doctor looks at each, and what strangers ask for is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from ray_folder import ray_folder
from simulated_cluster import SimulatedCluster

from supertiny.jobserver import answers_without_token
from supertiny.pipeline.local_cluster import local_cluster

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedCluster]:
    log = tmp_path_factory.mktemp("cluster") / "log"
    with ray_folder() as folder, SimulatedCluster(folder, str(checkout / "platform"), log) as nodes:
        for _ in range(3):
            nodes.add_node(1)
        yield nodes


def doctor(checkout: Path, address: str, *settings: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "RAY_ADDRESS": address, "PYTHONPATH": str(checkout / "platform"), "COLUMNS": "200"}
    command = [sys.executable, str(checkout / "jobs" / "doctor.py"), *(f"--set={each}" for each in settings)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)


def test_the_doctor_finds_three_nodes_well(cluster: SimulatedCluster, checkout: Path, tmp_path: Path) -> None:
    ran = doctor(checkout, cluster.address, f"run_root={tmp_path}", "min_disk_gib=0.1", "min_open_files=256", "ports=[]")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "3 nodes alike" in ran.stdout
    assert "the driver reads what 3 of 3 nodes wrote" in ran.stdout
    assert ran.stdout.count(f"reaches GCS {cluster.address}") == 3
    assert list(tmp_path.iterdir()) == []  # it leaves nothing behind


def test_the_doctor_ends_with_1_and_the_mend_where_a_node_would_fail_later(
    cluster: SimulatedCluster, checkout: Path, tmp_path: Path
) -> None:
    ran = doctor(checkout, cluster.address, f"run_root={tmp_path}", "min_disk_gib=1000000", "min_open_files=256", "ports=[]")
    assert ran.returncode == 1
    assert ran.stdout.count("FAIL") == 3
    assert "free some" in ran.stdout
    assert "error: Unhealthy: 3 of" in ran.stderr


def test_the_job_server_refuses_who_has_no_token_or_another_one() -> None:
    with local_cluster(1) as own:
        assert not answers_without_token(own.dashboard_url)
        for token, expected in (("f" * 64, {401, 403}), (os.environ["RAY_AUTH_TOKEN"], {200})):
            assert _status(own.dashboard_url, token) in expected
        stranger = {**os.environ, "RAY_AUTH_TOKEN": "f" * 64}
        command = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--address", own.dashboard_url, "--", "true"]
        refused = subprocess.run(command, env=stranger, capture_output=True, text=True, check=False, timeout=60)
        assert refused.returncode != 0
        assert json.loads(urlopen(_asking(own.dashboard_url, os.environ["RAY_AUTH_TOKEN"])).read()) == []  # nothing was started


def _asking(url: str, token: str) -> Request:
    return Request(f"{url}/api/jobs/", headers={"Authorization": f"Bearer {token}"})


def _status(url: str, token: str) -> int:
    try:
        with urlopen(_asking(url, token), timeout=10) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code
