"""The files of cluster/, read as what they are for, and what the jobs' configs ask for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
VIRTUAL_MACHINES = ("aws", "gcp")


@dataclass(frozen=True)
class Group:
    """Nodes of one kind, and how many of them there may be."""

    name: str
    resources: dict[str, float]
    labels: dict[str, str]
    most: int
    image: str


@cache
def cluster_config(name: str) -> dict[str, Any]:
    """A `ray up` file."""
    config: dict[str, Any] = yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())
    return config


def groups_of(name: str) -> list[Group]:
    """The groups of workers of a `ray up` file."""
    config = cluster_config(name)
    workers = {kind: each for kind, each in config["available_node_types"].items() if kind != config["head_node_type"]}
    images = {kind: each.get("docker", {}).get("worker_image", config["docker"]["image"]) for kind, each in workers.items()}
    return [Group(kind, each["resources"], each["labels"], each["max_workers"], images[kind]) for kind, each in workers.items()]


def nodes_for(groups: list[Group], labels: dict[str, str]) -> list[dict[str, float]]:
    """Every node that may be there with these labels."""
    fitting = [group for group in groups if labels.items() <= group.labels.items()]
    return [group.resources for group in fitting for _ in range(group.most)]
