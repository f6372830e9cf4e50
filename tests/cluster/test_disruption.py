"""What drains of nodes may take from cluster/kuberay."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kubernetes import OWN, Manifest, built, cluster_spec

SIZES = ("kind", "gpu")
WHOSE = ("cluster", "service", "pipeline")
every_size = pytest.mark.parametrize("size", SIZES)


def labelled(size: str) -> dict[tuple[str, str], dict[str, str]]:
    """The labels of every kind of pod that may lie in the namespace together, by whose it is and its group."""
    found = {}
    for whose in WHOSE:
        for manifest in built(f"{size}/{whose}"):
            if manifest["kind"] == "StatefulSet":
                found["redis", "redis"] = manifest["spec"]["template"]["metadata"]["labels"]
            if manifest["kind"] in OWN:
                found |= {(whose, group): labels for group, labels in _ray_pods(manifest)}
    return found


def budgets(size: str) -> dict[str, Manifest]:
    """Every budget that the three overlays of a size make, by name."""
    return {
        each["metadata"]["name"]: each["spec"]
        for whose in WHOSE
        for each in built(f"{size}/{whose}")
        if each["kind"] == "PodDisruptionBudget"
    }


def selected(budget: Manifest, pods: dict[tuple[str, str], dict[str, str]]) -> list[tuple[str, str]]:
    wanted = budget["selector"]["matchLabels"].items()
    return [kind for kind, labels in pods.items() if wanted <= labels.items()]


@every_size
def test_a_budget_counts_pods_of_one_kind_alone(size: str) -> None:
    """One over several is kept by any of them: the service's student may go while some pipeline has one."""
    pods = labelled(size)
    assert {name: kinds for name, budget in budgets(size).items() if len(kinds := selected(budget, pods)) != 1} == {}


@every_size
def test_no_pod_has_two_budgets(size: str) -> None:
    """Kubernetes' evictions refuse such a pod, whatever the budgets say."""
    pods = labelled(size)
    counted = [kind for budget in budgets(size).values() for kind in selected(budget, pods)]
    assert len(counted) == len(set(counted))


def test_what_serves_every_head_and_redis_have_one() -> None:
    pods = labelled("gpu")
    heads = {(whose, "headgroup") for whose in WHOSE}
    counted = {kind for budget in budgets("gpu").values() for kind in selected(budget, pods)}
    assert counted == {*heads, ("service", "student"), ("service", "teacher"), ("redis", "redis")}


@every_size
def test_one_stays_of_ray_s_pods_and_redis_may_go(size: str) -> None:
    """Of Ray's pods Kubernetes knows no number that there should be, so it can count only those that stay."""
    found = budgets(size)
    assert found.pop("redis")["maxUnavailable"] == 1
    for budget in found.values():
        assert budget["minAvailable"] == 1
        assert "maxUnavailable" not in budget


@pytest.mark.parametrize("whose", WHOSE)
def test_a_pod_that_may_be_on_a_spot_node_of_gke_is_done_within_what_it_gives(whose: str) -> None:
    """15 s for all that are not the node's own, of which a drain takes up to three before it is announced."""
    (nodes,) = [cluster_spec(manifest) for manifest in built(f"gpu/{whose}") if manifest["kind"] in OWN]
    pods = [group["template"]["spec"] for group in nodes["workerGroupSpecs"]]
    spot = [pod for pod in pods if "cloud.google.com/gke-spot" in {each["key"] for each in pod["tolerations"]}]
    assert len(spot) == len(pods)
    for pod in spot:
        *command, seconds = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert command[-1] == "--seconds"
        assert int(seconds) + 3 <= 15


def _ray_pods(manifest: Manifest) -> Iterator[tuple[str, dict[str, str]]]:
    """Groups and the labels that KubeRay gives their pods: the template's, the group's and its own."""
    nodes = cluster_spec(manifest)
    for kind, name, group in (
        ("head", "headgroup", nodes["headGroupSpec"]),
        *(("worker", each["groupName"], each) for each in nodes["workerGroupSpecs"]),
    ):
        own = {"ray.io/node-type": kind, "ray.io/group": name, "ray.io/is-ray-node": "yes"}
        yield name, {**group["template"]["metadata"]["labels"], **group["labels"], **own}
