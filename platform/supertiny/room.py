"""What a cluster has room for, and what it may still grow to have: Ray's own autoscaler is asked."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.autoscaler.v2.sdk import request_cluster_resources
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # type: ignore[attr-defined]

log = logging.getLogger(__name__)
NO_GROWTH = "and no autoscaler can add nodes for it"
"""What a PlanTooBig says besides."""
_POLL_SECONDS = 0.2


Place = tuple[Mapping[str, float], Mapping[str, str]]
"""Resources that have to be on one node, `{"CPU": 1, "GPU": 8}`, and labels that the node has to have."""


def nodes_there(labels: Mapping[str, str]) -> list[dict[str, float]]:
    """What each node of the running cluster has that has these labels."""
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in nodes if labels.items() <= node["Labels"].items()]


def can_grow_to(places: Sequence[Place], limit_seconds: float = 60.0) -> bool:
    """Whether the autoscaler takes a demand for what it can meet; False where none runs, or it says nothing in time.

    A demand that can be met is met: nodes are started for it, and leave again when they are idle for too long.

    Args:
        places: all of them together are the demand.
    """
    address = str(ray.get_runtime_context().gcs_address)
    before = _status(address)
    if not before.autoscaling_state.autoscaler_state_version:
        return False
    try:
        request_cluster_resources(address, [{"resources": _some(bundle), "label_selector": dict(labels)} for bundle, labels in places])
        asked = _status(address).cluster_resource_state.cluster_resource_state_version
        deadline = time.monotonic() + limit_seconds
        while time.monotonic() < deadline:
            state = _status(address).autoscaling_state
            if state.last_seen_cluster_resource_state_version > asked:
                return not state.infeasible_cluster_resource_constraints
            time.sleep(_POLL_SECONDS)
        log.warning("the autoscaler said nothing of a demand within %.0f s; is its process on the head alive?", limit_seconds)
        return False
    finally:
        request_cluster_resources(address, [])


def _some(bundle: Mapping[str, float]) -> dict[str, float]:
    """A bundle without what it takes nothing of, which Ray refuses."""
    return {name: amount for name, amount in bundle.items() if amount}


def _status(address: str) -> GetClusterStatusReply:
    reply = GetClusterStatusReply()
    reply.ParseFromString(GcsClient(address).get_cluster_status())
    return reply
