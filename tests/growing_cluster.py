"""A Ray whose autoscaler starts nodes: real raylets of this machine, by Ray's own fake provider, with the groups of a test.

Not `ray.cluster_utils.AutoscalingCluster`: that one ends every Ray of the machine when it starts, and its provider's type needs a file
that Ray's wheel lacks, so it is named as an external one here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider

from supertiny.pipeline.local_cluster import _answers, _free_ports


class GrowingCluster:
    """A context manager: a head without work, and groups that come and go.

    Args:
        groups: by name, as a `ray up` file's `available_node_types`.
        folder: for Ray's files; its path has to be short, since sockets lie in it.
        path: what the nodes' workers import from.
        environment: Ray's own settings, beyond the process's.
    """

    def __init__(
        self,
        groups: dict[str, Any],
        folder: str,
        path: str,
        *,
        idle_seconds: float,
        max_workers: int = 8,
        environment: dict[str, str] | None = None,
    ) -> None:
        self._folder, self._path = Path(folder), path
        self._gcs, self._dashboard, self._client, agent = _free_ports(4)
        self.address = f"127.0.0.1:{self._gcs}"
        self.dashboard_url = f"http://127.0.0.1:{self._dashboard}"
        head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
        self._config = {
            "cluster_name": "growing",
            "max_workers": max_workers,
            "upscaling_speed": 4.0,
            "idle_timeout_minutes": idle_seconds / 60,
            "provider": {
                **{"type": "external", "module": f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__qualname__}"},
                **{"gcs_address": self.address, "launch_multiple": True, "head_node_id": FAKE_HEAD_NODE_ID},
                **{"use_node_id_as_ip": True, "disable_node_updaters": True, "disable_launch_config_check": True},
            },
            "available_node_types": {**{name: {"node_config": {}, **each} for name, each in groups.items()}, "ray.head.default": head},
            "head_node_type": "ray.head.default",
            **{name: {} for name in ("auth", "docker", "file_mounts")},
            **{f"{name}_commands": [] for name in ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray")},
            **{name: [] for name in ("worker_start_ray_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter")},
            "file_mounts_sync_continuously": False,
        }
        self._agent, self._environment = agent, environment or {}

    def __enter__(self) -> GrowingCluster:
        (self._folder / "groups.json").write_text(json.dumps(self._config))
        environment = {
            **os.environ,
            **self._environment,
            "RAY_TMPDIR": str(self._folder),
            "PYTHONPATH": self._path,
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        }
        command = [
            *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=0", "--node-ip-address=127.0.0.1"),
            "--labels=supertiny/group=head",  # as in cluster/
            *(f"--port={self._gcs}", f"--dashboard-port={self._dashboard}", f"--ray-client-server-port={self._client}"),
            *(f"--dashboard-agent-listen-port={self._agent}", "--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats"),
            *(f"--temp-dir={self._folder / 'ray'}", f"--autoscaling-config={self._folder / 'groups.json'}"),
            f"--object-store-memory={200 * 2**20}",
        ]
        with (self._folder / "log").open("ab") as log:
            self._head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        _wait(lambda: _answers(f"{self.dashboard_url}/api/version"), self.log)
        return self

    def __exit__(self, *error: object) -> None:
        if self._head.poll() is not None:
            return
        family = psutil.Process(self._head.pid).children(recursive=True)
        self._head.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs([psutil.Process(self._head.pid), *family], timeout=20)
        for process in alive:
            process.kill()

    def workers(self) -> list[psutil.Process]:
        """The raylets of all nodes but the head."""
        found = []
        for process in psutil.Process(self._head.pid).children(recursive=True):
            with suppress(psutil.Error):
                command = process.cmdline()  # none where it is dead and nobody has asked for its status
                if command and command[0].endswith("/raylet") and "--head" not in command:
                    found.append(process)
        return found

    def log(self) -> str:
        """What Ray said at its start, and its autoscaler since."""
        monitor = next(self._folder.glob("ray/session_*/logs/monitor.log"), None)
        return (self._folder / "log").read_text()[-2000:] + (monitor.read_text()[-3000:] if monitor else "")


def _wait(condition: Any, log: Any, limit_seconds: float = 90) -> None:
    import time

    deadline = time.monotonic() + limit_seconds
    while not condition():
        assert time.monotonic() < deadline, log()
        time.sleep(0.3)
