"""A stage at a place of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from supertiny.artifacts import Artifact, make
from supertiny.compress.config import QuantizeConfig
from supertiny.errors import PlanTooBig
from supertiny.pipeline.config import PlaceConfig
from supertiny.pipeline.place import check_places, run_at

pytestmark = pytest.mark.ray


def test_a_stage_runs_in_this_process_without_a_place_and_in_a_task_with_one(local_ray: None, tmp_path: Path) -> None:
    def publish_process(config: QuantizeConfig) -> Artifact:
        return make(config, "model", {}, lambda folder: {"pid": os.getpid()})

    made = [
        run_at(place, publish_process, QuantizeConfig(run_root=str(tmp_path), name=name))
        for name, place in (("here", None), ("there", PlaceConfig()))
    ]
    here, there = (each.manifest.metrics["pid"] for each in made)
    assert here == os.getpid()
    assert there != here


def test_a_place_that_no_node_has_is_refused_at_once(local_ray: None) -> None:
    with pytest.raises(PlanTooBig, match=r"awq needs 1 CPUs and 8 GPUs of one node .* such nodes have 8 and 0"):
        check_places({"awq": PlaceConfig(num_gpus=8)})
