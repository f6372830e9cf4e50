"""The student's replicas from one to three and back, under a ramp of load on simulated nodes.

    python benchmarks/autoscaling.py --plot autoscaling.png        # two minutes

Scripted engines of 8 places that take half a second, so 16 requests a second each; every replica has a node of its own
(`ray.cluster_utils.Cluster`). Clients, each with one request after the other: 4, then 20, then 2. Autoscaling waits 2 s up and 10 s
down, where the defaults are 30 and 600. Every half second the running replicas are counted; the plot has load, replicas and p95.

The last line is one JSON object: `failed`, `max_replicas`, `last_replicas`; `seconds_to_most` and `seconds_to_least`, from the change of
load; and `p95_ratio`, of the last third of the high load to the low one before it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from supertiny.llm.config import ScriptedConfig
from supertiny.serving.config import ArmConfig, ServeConfig
from supertiny.serving.port import free_port
from supertiny.serving.traffic import nearest_rank

PHASES = ((4, 15.0), (20, 35.0), (2, 45.0))
"""Clients, and for how many seconds."""
MOST = 3
BODY = {"model": "student", "messages": [{"role": "user", "content": "turn on the kitchen light"}]}


@dataclass
class Recorded:
    """What happened, by seconds since the start."""

    load: list[tuple[float, int]] = field(default_factory=list)
    replicas: list[tuple[float, int]] = field(default_factory=list)
    answers: list[tuple[float, float, bool]] = field(default_factory=list)
    """When a request ended, how long it took, and whether it was answered."""


def main() -> int:
    """Ramp, record, print and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, help="where to draw load, replicas and p95")
    flags = parser.parse_args()
    student = ArmConfig(
        min_replicas=1,
        max_replicas=MOST,
        target_ongoing_requests=6,
        max_ongoing_requests=8,
        upscale_seconds=2,
        downscale_seconds=10,
        scripted=ScriptedConfig(answer="done", delay_seconds=0.5, max_num_seqs=8),
    )
    with simulated_nodes(), tempfile.TemporaryDirectory() as root:
        from supertiny.serving.run import served  # imports Ray, which reads the token's settings

        config = ServeConfig(run_root=root, student_arm=student, teacher_arm=ArmConfig(scripted=ScriptedConfig()))
        with served(config, port=free_port()) as url:
            recorded = ramp(url)
    if flags.plot:
        draw(recorded, flags.plot)
    print(json.dumps({name: round(value, 3) for name, value in numbers(recorded).items()}))
    return 0


@contextmanager
def simulated_nodes() -> Iterator[None]:
    """A head with room for the teacher's engine alone, and a node for each replica of the student."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    import ray
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory(prefix="supertiny-") as folder:
        os.environ["RAY_TMPDIR"] = folder
        small = 128 * 2**20
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": small})
        try:
            for _ in range(MOST):
                cluster.add_node(num_cpus=1, object_store_memory=small)
            ray.init(address=cluster.address, log_to_driver=False)
            yield
        finally:
            ray.shutdown()
            cluster.shutdown()


def ramp(url: str) -> Recorded:
    """All phases, one after the other."""
    recorded, start, over = Recorded(), time.monotonic(), threading.Event()
    watcher = threading.Thread(target=watch, args=(recorded, start, over))
    watcher.start()
    try:
        asyncio.run(_phases(url, recorded, start))
    finally:
        over.set()
        watcher.join()
    return recorded


async def _phases(url: str, recorded: Recorded, start: float) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=64), trust_env=False) as client:
        for clients, seconds in PHASES:
            recorded.load.append((time.monotonic() - start, clients))
            until = time.monotonic() + seconds
            await asyncio.gather(*(_work(client, recorded, start, until) for _ in range(clients)))
    recorded.load.append((time.monotonic() - start, 0))


async def _work(client: httpx.AsyncClient, recorded: Recorded, start: float, until: float) -> None:
    while time.monotonic() < until:
        began, ok = time.monotonic(), False
        with suppress(httpx.HTTPError):  # counted as failed
            ok = (await client.post("/v1/chat/completions", json=BODY)).status_code == 200
        recorded.answers.append((time.monotonic() - start, time.monotonic() - began, ok))


def watch(recorded: Recorded, start: float, over: threading.Event) -> None:
    """Note the running replicas every half second."""
    from ray import serve

    from supertiny.serving.run import APPLICATION

    while not over.wait(0.5):
        states = serve.status().applications[APPLICATION].deployments["student-engine"].replica_states
        recorded.replicas.append((time.monotonic() - start, states.get("RUNNING", 0)))


def numbers(recorded: Recorded) -> dict[str, float]:
    """What the last line says."""
    (_, _), (high, _), (low, _), (end, _) = recorded.load
    counts = [count for _, count in recorded.replicas]
    most = next((at for at, count in recorded.replicas if count == max(counts)), end)
    least = next((at for at, count in recorded.replicas if at > low and count == 1), end)
    return {
        "failed": sum(not ok for *_, ok in recorded.answers),
        "requests": len(recorded.answers),
        "max_replicas": max(counts),
        "last_replicas": counts[-1],
        "seconds_to_most": most - high,
        "seconds_to_least": least - low,
        "p95_ratio": p95(recorded, low - (low - high) / 3, low) / p95(recorded, 2.0, high),
    }


def p95(recorded: Recorded, since: float, until: float) -> float:
    """Seconds, of the requests that ended in between; 0 where there was none."""
    seconds = sorted(took for at, took, _ in recorded.answers if since <= at < until)
    return nearest_rank(seconds, 0.95) if seconds else 0.0


def draw(recorded: Recorded, path: Path) -> None:
    """Load, replicas and p95 over the same seconds."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (load, replicas, latency) = pyplot.subplots(3, 1, sharex=True, figsize=(7, 6))
    load.step(*zip(*recorded.load, strict=True), where="post")
    load.set_ylabel("clients")
    replicas.step(*zip(*recorded.replicas, strict=True), where="post")
    replicas.set_ylabel("replicas")
    seconds = range(int(recorded.load[-1][0]))
    latency.plot(seconds, [1000 * p95(recorded, second, second + 1) for second in seconds])
    latency.set_ylabel("p95, ms")
    latency.set_xlabel("seconds")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    raise SystemExit(main())
