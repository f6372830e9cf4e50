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
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from supertiny.pipeline.local_cluster import _free_ports

AS_IN_CLUSTER = {
    "RAY_gcs_rpc_server_reconnect_timeout_s": "600",  # how long a node goes on without a head: KubeRay's, where there is a Redis
    "RAY_health_check_period_ms": "1000",  # cluster/'s own: five in vain, and a node is lost
}

POD = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]
"""Starts a node as a pod: its processes see no other node's, and all end with the first of them."""
DRIVER = """
import runpy, sys, ray
_, address, ip, *sys.argv = sys.argv
ray.init(address, _node_ip_address=ip or None, logging_level="warning")
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""A job's driver on a node of choice; without one Ray takes the head, where all nodes are of one machine."""


@dataclass
class Node:
    """One `ray start --block` and what it started."""

    process: subprocess.Popen[bytes]
    ip: str | None
    """Its address of 127/8; None for the head, which Ray gives this machine's."""
    log: Path
    beside: list[subprocess.Popen[bytes]] = field(default_factory=list)
    """What `run_in` started."""

    def family(self) -> list[psutil.Process]:
        """Every process of the node, parents first."""
        return [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]

    def first(self) -> psutil.Process:
        """`ray start`, where the node is a pod: its process 1, below `unshare`."""
        return psutil.Process(self.process.pid).children()[0]


def can_make_pods() -> bool:
    """Whether this machine has `unshare`, and lets us make user and PID namespaces."""
    return shutil.which("unshare") is not None and subprocess.run([*POD, "true"], capture_output=True, check=False).returncode == 0


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

    def add_workers(self, count: int, num_cpus: int, num_gpus: int = 0, *, group: str = "", pods: bool = False) -> list[Node]:
        """Nodes that have registered, one after the other: two that start together would take the same names for their sockets.

        Args:
            group: their label `supertiny/group`, as in cluster/.
            pods: in namespaces of their own, where `run_in` runs commands.
        """
        nodes = []
        for _ in range(count):
            self._count += 1
            ip = f"127.0.0.{1 + self._count}"
            what = [f"--num-cpus={num_cpus}", f"--num-gpus={num_gpus}", *([f"--labels=supertiny/group={group}"] if group else [])]
            where = [f"--address={self.address}", f"--node-ip-address={ip}"]
            nodes.append(self._start(ip, [*where, *what], POD if pods else []))
            _wait(nodes[-1])
        return nodes

    def run_in(self, pod: Node, command: list[str], variables: dict[str, str], log: Path) -> None:
        """Start a command inside of a pod, beside `ray start`; it ends with it."""
        enter = ["nsenter", f"--target={pod.first().pid}", "--user", "--preserve-credentials", "--pid", "--mount"]
        with log.open("ab") as output:
            environment = {**self._environment, **variables}
            pod.beside.append(subprocess.Popen([*enter, *command], env=environment, stdout=output, stderr=output))

    def start_driver(self, where: Node, job: list[str], log: Path) -> subprocess.Popen[bytes]:
        """A job's script and its flags, its driver on a node."""
        command = [sys.executable, "-c", DRIVER, self.address, where.ip or "", *job]
        environment = {**os.environ, "PYTHONPATH": self._environment["PYTHONPATH"]}
        with log.open("ab") as output:
            return subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)

    def lose(self, node: Node) -> None:
        """SIGKILL to every process of a node at once, as when a machine loses its power."""
        self._living.remove(node)
        with suppress(psutil.NoSuchProcess):
            for each in node.family():
                with suppress(psutil.NoSuchProcess):
                    each.send_signal(signal.SIGKILL)
        for process in (node.process, *node.beside):
            process.wait()

    def _start(self, ip: str | None, arguments: list[str], within: Sequence[str] = ()) -> Node:
        common = ["--block", "--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats"]
        common += [f"--dashboard-agent-listen-port={_free_ports(1)[0]}", f"--object-store-memory={100 * 2**20}"]
        command = [*within, str(Path(sys.executable).with_name("ray")), "start", *arguments, *common]
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
