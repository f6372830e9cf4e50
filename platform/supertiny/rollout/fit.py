"""Whether a cluster can hold a rollout's engines, before anything waits for them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from supertiny.errors import PlanTooBig
from supertiny.rollout.config import LayoutConfig

_A_LOT = 10**6
log = logging.getLogger(__name__)


def engines_that_fit(layout: LayoutConfig, nodes: Sequence[Mapping[str, float]]) -> int:
    """How many engines will run: as many as may, or as there is room for, one CPU left to Ray Data's own tasks.

    Args:
        nodes: what each node of the cluster has, `{"CPU": 8.0, "GPU": 1.0, …}`; an engine takes of one node.

    Raises:
        PlanTooBig: there is not even room for the fewest that are asked for.
    """
    fewest, most = layout.num_engines
    has = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
    needs = {"CPU": fewest * layout.cpus_per_engine + 1, "GPU": fewest * layout.gpus_per_engine}
    for name, need in needs.items():
        if need > has[name]:
            raise PlanTooBig(f"rollout needs {need:g} {name}s ({fewest} engines), the cluster has {has[name]:g}")
    room = min(sum(_room(layout, node) for node in nodes), _times(layout.cpus_per_engine, has["CPU"] - 1))
    if room < fewest:
        raise PlanTooBig(
            f"rollout needs {fewest} engines, each {layout.cpus_per_engine:g} CPUs and {layout.gpus_per_engine:g} GPUs of one node: the "
            f"cluster's nodes have room for {room}, in {', '.join(_describe(node) for node in nodes)}"
        )
    if room < most:
        log.info("room for %s of at most %s engines; the others come if the cluster grows", room, most)
    return min(room, most)


def _room(layout: LayoutConfig, node: Mapping[str, float]) -> int:
    cpus, gpus, takes = node.get("CPU", 0), node.get("GPU", 0), layout.gpus_per_engine
    by_gpu = int(gpus) * _times(takes, 1) if 0 < takes < 1 else _times(takes, gpus)  # a fraction is never put together from two GPUs
    return min(_times(layout.cpus_per_engine, cpus), by_gpu)


def _times(takes: float, has: float) -> int:
    """How often `takes` goes into `has`; a lot where nothing is taken."""
    return int(has / takes + 1e-9) if takes > 0 else _A_LOT


def _describe(node: Mapping[str, float]) -> str:
    return f"{node.get('CPU', 0):g} CPUs with {node.get('GPU', 0):g} GPUs"
