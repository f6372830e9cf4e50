"""Ray nodes as `ray start` makes them on machines of their own: each has an address of 127/8 and is lost whole, the head too.

Not `ray.cluster_utils.Cluster`, whose head cannot come back.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from supertiny.pipeline.local_cluster import _free_ports

AS_IN_CLUSTER = {
    "RAY_gcs_rpc_server_reconnect_timeout_s": "600",  # how long a node goes on without a head: KubeRay's, where there is a Redis
    "RAY_health_check_period_ms": "1000",  # cluster/'s own: five in vain, and a node is lost
}


@dataclass
class Node:
    """One `ray start --block` and what it started."""

    process: subprocess.Popen[bytes]
    ip: str | None
    """Its address of 127/8; None for the head, which Ray gives this machine's."""
    log: Path

    def family(self) -> list[psutil.Process]:
        """Every process of the node, parents first."""
        return [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]


class StartedNodes:
    """A context manager: a head without work, and workers that come and go.

    Args:
        folder: for Ray's files; its path has to be short, since sockets lie in it.
        path: what the nodes' workers import from.
        redis: keep the head's memory in a Redis, so that it may be lost. Skips the test where there is none.
        environment: Ray's own settings, beyond the process's.
    """

    def __init__(self, folder: str, path: str, *, redis: bool = False, environment: dict[str, str] | None = None) -> None:
        if redis and shutil.which("redis-server") is None:
            pytest.skip("NOT TESTED: the head's loss needs redis-server, which is not installed (Debian: apt-get install redis-server)")
        self._folder, self._gcs, self._redis_port = Path(folder), *_free_ports(2)
        self._environment = {**os.environ, **AS_IN_CLUSTER, "RAY_TMPDIR": folder, "PYTHONPATH": path, **(environment or {})}
        if redis:
            self._environment |= {"RAY_REDIS_ADDRESS": f"127.0.0.1:{self._redis_port}", "RAY_external_storage_namespace": "supertiny"}
        self._redis: subprocess.Popen[bytes] | None = None
        self._has_redis, self._count = redis, 0
        self._living: list[Node] = []
        self.address = f"127.0.0.1:{self._gcs}"

    def __enter__(self) -> StartedNodes:
        if self._has_redis:
            command = ["redis-server", "--bind", "127.0.0.1", "--port", str(self._redis_port), "--save", "", "--appendonly", "no"]
            self._redis = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=self._folder)
        self.head = self.start_head()
        return self

    def __exit__(self, *error: object) -> None:
        for node in list(self._living):
            self.lose(node)
        if self._redis is not None:
            self._redis.kill()
            self._redis.wait()

    def start_head(self) -> Node:
        """The head, for the first time or again at the same address."""
        (self._folder / "ray" / "ray_current_cluster").unlink(missing_ok=True)  # a new machine has none
        ports = [f"--port={self._gcs}", f"--ray-client-server-port={_free_ports(1)[0]}", "--include-dashboard=false"]
        self.head = self._start(
            None, ["--head", "--num-cpus=0", "--labels=supertiny/group=head", f"--temp-dir={self._folder / 'ray'}", *ports]
        )
        _wait(self.head)
        return self.head

    def add_workers(self, count: int, num_cpus: int, num_gpus: int = 0) -> list[Node]:
        """Nodes that have registered, one after the other: two that start together would take the same names for their sockets."""
        nodes = []
        for _ in range(count):
            self._count += 1
            ip = f"127.0.0.{1 + self._count}"
            resources = [f"--num-cpus={num_cpus}", f"--num-gpus={num_gpus}"]
            nodes.append(self._start(ip, [f"--address={self.address}", f"--node-ip-address={ip}", *resources]))
            _wait(nodes[-1])
        return nodes

    def lose(self, node: Node) -> None:
        """SIGKILL to every process of a node at once, as when a machine loses its power."""
        self._living.remove(node)
        with suppress(psutil.NoSuchProcess):
            for each in node.family():
                with suppress(psutil.NoSuchProcess):
                    each.send_signal(signal.SIGKILL)
        node.process.wait()

    def _start(self, ip: str | None, arguments: list[str]) -> Node:
        common = ["--block", "--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats"]
        common += [f"--dashboard-agent-listen-port={_free_ports(1)[0]}", f"--object-store-memory={100 * 2**20}"]
        command = [str(Path(sys.executable).with_name("ray")), "start", *arguments, *common]
        log = self._folder / f"node-{len(list(self._folder.glob('node-*')))}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, env=self._environment, stdout=output, stderr=output, start_new_session=True)
        self._living.append(Node(process, ip, log))
        return self._living[-1]


def _wait(node: Node, limit_seconds: float = 90) -> None:
    deadline = time.monotonic() + limit_seconds
    while "Ray runtime started" not in node.log.read_text():
        assert node.process.poll() is None, node.log.read_text()[-3000:]
        assert time.monotonic() < deadline, node.log.read_text()[-3000:]
        time.sleep(0.1)
