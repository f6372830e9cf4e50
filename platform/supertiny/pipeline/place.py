"""Stages whose work is one process, as a Ray task on nodes of their choice and in an image of their own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import ray

from supertiny.artifacts import Artifact
from supertiny.cli import configure_logging
from supertiny.config import PlaceConfig, PlacedConfig
from supertiny.errors import ConfigError, PlanTooBig
from supertiny.lost_nodes import despite_lost_nodes
from supertiny.room import NO_GROWTH, can_grow_to, nodes_there

S = TypeVar("S", bound=PlacedConfig)
NODE_SECONDS = 300
"""Longest wait for a node in a lost one's place, where there is no autoscaler to ask for one."""


def run_at_place(work: Callable[[S], Artifact], stage: S) -> Artifact:
    """What a stage's work publishes, done at its place; in this process where it has none.

    Joins the cluster of the job for it, or starts one of this machine's CPUs where there is none.

    Raises:
        ConfigError, PlanTooBig: as `check_places`.
        NoProgress, SupertinyError: as `despite_lost_nodes`.
    """
    if stage.place is None:
        return work(stage)
    if not ray.is_initialized():
        ray.init(include_dashboard=False, logging_level=logging.WARNING)
    check_places([stage])
    task = ray.remote(_run).options(name=work.__name__, **task_options(stage.place))

    def ask() -> Artifact:
        _await_place(stage)
        made: Artifact = ray.get(task.remote(work, stage))
        return made

    return despite_lost_nodes(stage.name, ask)


def _await_place(stage: PlacedConfig) -> None:
    """Where a node was lost another one may be on its way, of which Ray knows nothing: KubeRay's, in a group of a fixed size."""
    deadline = time.monotonic() + NODE_SECONDS
    while True:
        try:
            return check_places([stage])
        except PlanTooBig:
            if time.monotonic() > deadline:
                raise
            time.sleep(2)


def _run(work: Callable[[Any], Artifact], stage: PlacedConfig) -> Artifact:
    """In the task's process."""
    configure_logging()
    return work(stage)


def task_options(place: PlaceConfig) -> dict[str, Any]:
    """A Ray task's options, by which Ray tries it once: `despite_lost_nodes` does so again."""
    image = {"runtime_env": {"image_uri": place.image}} if place.image else {}
    return {"num_cpus": place.num_cpus, "num_gpus": place.num_gpus, "label_selector": place.labels, "max_retries": 0, **image}


def check_places(stages: Sequence[PlacedConfig]) -> None:
    """Refuse what could never start; `ray.init` was called before.

    Raises:
        ConfigError: a stage has an image, and the job was submitted with files that Ray cannot bring into one.
        PlanTooBig: no node has room for a stage, nor could one come.
    """
    uploaded = ray.get_runtime_context().runtime_env.get("working_dir")
    for stage in stages:
        if stage.place is None:
            continue
        if stage.place.image and uploaded:
            raise ConfigError(
                f"{stage.name}: place.image: Ray brings no uploaded files into an image, and this job was submitted with a working "
                "directory; submit it without --working-dir, as the head's image holds supertiny too"
            )
        _check_fits(stage.name, stage.place)


def _check_fits(name: str, place: PlaceConfig) -> None:
    needs = {"CPU": place.num_cpus, "GPU": place.num_gpus}
    nodes = nodes_there(place.labels)
    if any(all(node.get(each, 0) >= need for each, need in needs.items()) for node in nodes):
        return
    if not can_grow_to([(needs, place.labels)]):
        has = ", ".join(f"{node.get('CPU', 0):g} and {node.get('GPU', 0):g}" for node in nodes) or "none"
        raise PlanTooBig(
            f"{name} needs {place.num_cpus:g} CPUs and {place.num_gpus:g} GPUs of one node with labels {place.labels}; "
            f"such nodes have {has}; {NO_GROWTH}"
        )
