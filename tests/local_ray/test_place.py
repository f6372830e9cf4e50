"""A stage at a place of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from supertiny.artifacts import Artifact, make
from supertiny.compress.config import LatencyConfig, QuantizeConfig
from supertiny.config import PlaceConfig, PlacedConfig
from supertiny.errors import MissingInput, PlanTooBig
from supertiny.pipeline.place import check_places, run_at_place

pytestmark = pytest.mark.ray
Work = Callable[[PlacedConfig], Artifact]


@pytest.fixture
def publish_process() -> Work:
    """Work that says which process does it; no module's, so that it travels to a worker whole."""
    return lambda config: make(config, "model", {}, lambda folder: {"pid": os.getpid()})


def test_a_stage_runs_in_this_process_without_a_place_and_in_a_task_with_one(
    local_ray: None, tmp_path: Path, publish_process: Work
) -> None:
    made = [
        run_at_place(publish_process, QuantizeConfig(run_root=str(tmp_path), name=name, place=place))
        for name, place in (("here", None), ("there", PlaceConfig()))
    ]
    here, there = (each.manifest.metrics["pid"] for each in made)
    assert here == os.getpid()
    assert there != here


def test_speeds_are_never_measured_in_the_driver(local_ray: None, tmp_path: Path, publish_process: Work) -> None:
    made = run_at_place(publish_process, LatencyConfig(run_root=str(tmp_path)))
    assert made.manifest.metrics["pid"] != os.getpid()


def test_what_a_stage_raises_at_its_place_is_raised_here_as_it_was(local_ray: None, tmp_path: Path) -> None:
    def fail(config: QuantizeConfig) -> Artifact:
        raise MissingInput(f"no {config.student}")

    with pytest.raises(MissingInput, match=r"^no heal$"):
        run_at_place(fail, QuantizeConfig(run_root=str(tmp_path), place=PlaceConfig()))


def test_a_place_that_no_node_has_is_refused_at_once(local_ray: None) -> None:
    with pytest.raises(PlanTooBig, match=r"awq needs 1 CPUs and 8 GPUs of one node .* such nodes have 8 and 0"):
        check_places([QuantizeConfig(place=PlaceConfig(num_gpus=8))])
