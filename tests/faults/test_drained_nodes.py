"""What a pod's work still gets when the pod is ended: the preStop hook's seconds, then those of Ray's own drain after SIGTERM."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from ray_folder import ray_folder
from started_nodes import StartedNodes
from train_runs import wait_for

pytestmark = [pytest.mark.soak, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]
HOOK_SECONDS, WORK_SECONDS = 2, 12
JOB = f"""
import sys, time, ray
from pathlib import Path
from supertiny.drain import announce

@ray.remote(label_selector={{"supertiny/group": "student"}}, max_retries=0)
def work(folder):
    context = ray.get_runtime_context()
    announce(context.get_node_id(), context.gcs_address, {HOOK_SECONDS}, "as a pod's hook does")
    (Path(folder) / "announced").touch()
    time.sleep({WORK_SECONDS})

ray.get(work.remote(sys.argv[1]))
"""


@pytest.mark.parametrize(("drain_seconds", "status"), [(20, 0), (4, 1)], ids=["long enough", "too short"])
def test_work_goes_on_after_the_hook_as_long_as_ray_s_own_drain(drain_seconds: int, status: int, checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB)
    environment = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(drain_seconds)}
    with ray_folder() as folder, StartedNodes(folder, str(checkout / "platform"), environment=environment) as nodes:
        (node,) = nodes.add_workers(1, 1, group="student")
        driver = nodes.start_driver(nodes.head, [str(tmp_path / "job.py"), str(tmp_path)], tmp_path / "log")
        try:
            wait_for((tmp_path / "announced").exists, driver)
            time.sleep(HOOK_SECONDS)
            node.process.terminate()
            assert driver.wait(90) == status, (tmp_path / "log").read_text()[-3000:]
        finally:
            driver.kill()
