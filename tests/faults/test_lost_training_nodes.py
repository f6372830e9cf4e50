"""Training whose node is lost, with a notice and without: real raylets, each in a pod and with one worker."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray_folder import ray_folder
from started_nodes import Node, StartedNodes, can_make_pods
from started_runs import STEPS_A_PASS, StartedRun
from tests.cluster.manifests import CLUSTER, cluster_config
from train_runs import finished_checkpoints, name_of, wait_for

from supertiny.drain import WATCHED

needs_pods = pytest.mark.skipif(not can_make_pods(), reason="NOT TESTED: what runs beside Ray in a pod needs namespaces (unshare)")
pytestmark = [pytest.mark.soak, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
PASSES = 40
NOTICED: dict[str, Any] = {"passes": PASSES, "spot": True, "checkpoint_every_steps": 10_000, "max_failures": 0}
"""A notice is no failure."""
NOTICE_SECONDS, LAST_SECONDS = 30, 2
"""From a spot machine's notice to its end, and from SIGTERM to it: what a kubelet leaves where the hook has taken all the time before."""


@dataclass
class Cluster:
    """A head without work, where the drivers are, and two pods with a worker each."""

    nodes: StartedNodes
    pods: list[Node]

    def lose_one(self) -> None:
        """And get another one, as from an autoscaler."""
        self.nodes.lose(self.pods.pop())
        self.get_one()

    def get_one(self) -> None:
        """Another pod."""
        self.pods += self.nodes.add_workers(1, 1, pods=can_make_pods())

    def training_pods(self) -> int:
        """How many of them have a training worker."""
        return sum("RayTrainWorker" in name_of(process) for pod in self.pods for process in pod.first().children(recursive=True))


@pytest.fixture(scope="module")
def cluster(checkout: Path) -> Iterator[Cluster]:
    with ray_folder() as folder, StartedNodes(folder, str(checkout / "platform")) as nodes:
        yield Cluster(nodes, nodes.add_workers(2, 1, pods=can_make_pods()))


def pre_stop() -> list[str]:
    """The hook of cluster/kuberay's training pods."""
    groups = yaml.safe_load((CLUSTER / "kuberay" / "base" / "raycluster.yaml").read_text())["spec"]["workerGroupSpecs"]
    (pod,) = [group["template"]["spec"] for group in groups if group["groupName"] == "train"]
    python, *hook = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert python == "python"
    return [sys.executable, *hook]


def watch() -> list[str]:
    """What cluster/gcp.yaml starts beside Ray."""
    (line,) = [each for each in cluster_config("gcp")["worker_start_ray_commands"] if "supertiny.drain" in each]
    nohup, python, *words = line.partition(">")[0].split()
    assert (nohup, python) == ("nohup", "python")
    return [sys.executable, *words]


@contextmanager
def cloud(notice: threading.Event) -> Iterator[dict[str, str]]:
    """Google's metadata service, which says whether the machine ends; it is reached as a proxy, by these variables."""

    class Metadata(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = (self.path, self.headers["Metadata-Flavor"]) == (WATCHED["gcp"][0], "Google")
            self.send_response(200 if asked else 403)
            self.end_headers()
            self.wfile.write(b"TRUE" if notice.is_set() else b"FALSE")

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield {"http_proxy": f"http://127.0.0.1:{http.server_port}", "no_proxy": ""}
    http.shutdown()
    http.server_close()


def lose_with_notice(cluster: Cluster, run: StartedRun, tell: Callable[[], object]) -> None:
    """Tell of the pod's end, and end it as a machine ends that has 30 s: SIGTERM to `ray start`, and SIGKILL to everything."""
    wait_for(lambda: run.steps() >= 20, run.driver)
    noticed = time.monotonic()
    tell()
    wait_for(lambda: finished_checkpoints(run.root), run.driver, NOTICE_SECONDS)
    seconds = time.monotonic() - noticed
    (checkpoint,) = finished_checkpoints(run.root)
    time.sleep(NOTICE_SECONDS - LAST_SECONDS - seconds)
    lost = run.steps() - checkpoint
    cluster.pods[-1].first().terminate()
    time.sleep(LAST_SECONDS)
    cluster.lose_one()
    assert run.finish() == list(range(1, PASSES * STEPS_A_PASS + 1))
    print(f"\na checkpoint {seconds:.1f} s after the notice, {lost} steps lost, done {time.monotonic() - noticed:.0f} s after it")
    assert checkpoint >= 20
    assert lost <= 1


@needs_pods
def test_after_a_pod_s_hook_there_is_a_checkpoint_in_time_and_at_most_a_step_is_lost(
    cluster: Cluster, checkout: Path, tmp_path: Path
) -> None:
    with StartedRun(checkout, tmp_path, cluster.nodes, cluster.nodes.head, **NOTICED) as run:
        kubernetes = {"RAY_ADDRESS": cluster.nodes.address}  # as KubeRay gives its containers
        lose_with_notice(cluster, run, lambda: cluster.nodes.run_in(cluster.pods[-1], pre_stop(), kubernetes, tmp_path / "hook"))


@needs_pods
def test_so_there_is_where_the_cloud_is_asked(cluster: Cluster, checkout: Path, tmp_path: Path) -> None:
    notice = threading.Event()
    with cloud(notice) as variables, StartedRun(checkout, tmp_path, cluster.nodes, cluster.nodes.head, **NOTICED) as run:
        cluster.nodes.run_in(cluster.pods[-1], watch(), variables, tmp_path / "watch")
        lose_with_notice(cluster, run, notice.set)


def test_a_node_that_is_lost_without_notice_costs_the_steps_since_the_last_checkpoint(
    cluster: Cluster, checkout: Path, tmp_path: Path
) -> None:
    with StartedRun(checkout, tmp_path, cluster.nodes, cluster.nodes.head, passes=PASSES, checkpoint_every_steps=20) as run:
        wait_for(lambda: finished_checkpoints(tmp_path), run.driver)
        wait_for(lambda: run.steps() > max(finished_checkpoints(tmp_path)), run.driver)
        lost = run.steps() - max(finished_checkpoints(tmp_path))
        killed = time.monotonic()
        cluster.lose_one()
        assert run.finish() == list(range(1, PASSES * STEPS_A_PASS + 1))
    print(f"\nno notice: {lost} steps redone, finished {time.monotonic() - killed:.0f} s after the loss")
    assert lost <= 21


def test_with_fewer_nodes_it_goes_on_with_fewer_workers_and_grows_again(cluster: Cluster, checkout: Path, tmp_path: Path) -> None:
    elastic = {"passes": 20 * PASSES, "checkpoint_every_steps": 20, "min_workers": 1}
    with StartedRun(checkout, tmp_path, cluster.nodes, cluster.nodes.head, **elastic) as run:
        wait_for(lambda: finished_checkpoints(tmp_path), run.driver)
        cluster.nodes.lose(cluster.pods.pop())
        lost, at = time.monotonic(), run.steps()
        wait_for(lambda: run.steps() > at + 40, run.driver)
        assert cluster.training_pods() == 1
        shrunken, at = time.monotonic(), run.steps()
        cluster.get_one()
        there = time.monotonic()
        wait_for(lambda: cluster.training_pods() == 2, run.driver, 200)
        grown, alone = time.monotonic(), run.steps()
        wait_for(lambda: run.steps() > alone + 40, run.driver)
        assert [json.loads(line)["step"] for line in run.metrics()[: alone + 20]] == list(range(1, alone + 21))
    print(f"\nalone after {shrunken - lost:.0f} s, for {alone - at} steps more; two again {grown - there:.0f} s after the node was there")
