"""Stages whose work is one process, as a Ray task on nodes of their choice and in an image of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import ray

from supertiny.artifacts import Artifact
from supertiny.config import StageConfig
from supertiny.errors import ConfigError, PlanTooBig
from supertiny.pipeline.config import OneProcess, PlaceConfig
from supertiny.room import NO_GROWTH, can_grow_to, nodes_there

S = TypeVar("S", bound=StageConfig)


def run_at(place: PlaceConfig | None, work: Callable[[S], Artifact], stage: S) -> Artifact:
    """What a stage's work publishes, done at its place; in this process where it has none. `ray.init` was called before."""
    if place is None:
        return work(stage)
    made: Artifact = ray.get(ray.remote(work).options(**task_options(place)).remote(stage))
    return made


def task_options(place: PlaceConfig) -> dict[str, Any]:
    """A Ray task's options; it is tried once, for a stage that failed is for a human to see."""
    image = {"runtime_env": {"image_uri": place.image}} if place.image else {}
    return {"num_cpus": place.num_cpus, "num_gpus": place.num_gpus, "label_selector": place.labels, "max_retries": 0, **image}


def check_places(places: Mapping[OneProcess, PlaceConfig]) -> None:
    """Refuse what could never start.

    Raises:
        ConfigError: a stage has an image, and the job was submitted with files that Ray cannot bring into one.
        PlanTooBig: no node has room for a stage, nor could one come.
    """
    uploaded = ray.get_runtime_context().runtime_env.get("working_dir")
    for name, place in places.items():
        if place.image and uploaded:
            raise ConfigError(
                f"places.{name}.image: Ray brings no uploaded files into an image, and this job was submitted with a working directory; "
                "submit it without --working-dir, as the head's image holds supertiny too"
            )
        _check_fits(name, place)


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
