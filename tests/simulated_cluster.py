"""Ray nodes that are processes of this machine, and can be killed: `ray.cluster_utils.Cluster` in an interpreter of its own.

That resets what a Ray of the same process needs, so the session's could not live beside it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TextIO

import psutil


class SimulatedCluster:
    """A context manager; its nodes end with it.

    Args:
        folder: for Ray's files; its path has to be short, since sockets lie in it.
        path: what the nodes' workers import from.
    """

    def __init__(self, folder: str, path: str, log: Path) -> None:
        self._folder, self._path, self._log = folder, path, log
        self.address = ""

    def __enter__(self) -> SimulatedCluster:
        environment = {**os.environ, "RAY_TMPDIR": self._folder, "PYTHONPATH": self._path}
        with self._log.open("ab") as log:
            command = [sys.executable, __file__]
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate(timeout=60)

    def add_node(self, num_cpus: int) -> int:
        """The process id of a new node's raylet; the first node is the head."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{num_cpus}\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("node "):
                _, raylet, self.address = line.split()
                return int(raylet)
        raise AssertionError(f"the simulated cluster ended: {self._log.read_text()[-2000:]}")


def engine_on(raylet: int) -> int | None:
    """The process id of the rollout engine's actor on a node, if it has one: the parent of a pipelines' process."""
    try:
        processes = psutil.Process(raylet).children(recursive=True)
        return next((each.ppid() for each in processes if "supertiny.rollout.worker" in each.cmdline()), None)
    except psutil.NoSuchProcess:
        return None


def main(orders: TextIO) -> None:
    """Add a node for each line, a number of CPUs; answer `node RAYLET ADDRESS`; end the cluster with the input."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    for line in orders:
        node = cluster.add_node(num_cpus=int(line), include_dashboard=False)
        raylet = node.all_processes["raylet"][0].process.pid
        print(f"node {raylet} {cluster.address}", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.stdin)
