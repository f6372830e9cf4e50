"""A stage at a place of its own."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from supertiny.artifacts import Artifact, make
from supertiny.compress.config import LatencyConfig, QuantizeConfig
from supertiny.config import PlaceConfig, PlacedConfig
from supertiny.errors import MissingInput, NoProgress, PlanTooBig
from supertiny.pipeline.place import check_places, run_at_place

pytestmark = pytest.mark.ray
Work = Callable[[PlacedConfig], Artifact]


@pytest.fixture
def publish_process() -> Work:
    """Work that says which process does it; no module's, so that it travels to a worker whole."""
    return lambda config: make(config, "model", {}, lambda folder: {"pid": os.getpid()})


@pytest.fixture
def begin() -> Callable[[PlacedConfig], int]:
    """How often a stage was begun, with this time."""

    def begin(config: PlacedConfig) -> int:
        with (Path(config.run_root) / "begun").open("a") as begun:
            begun.write("x")
            return begun.tell()

    return begin


@pytest.fixture
def dying(begin: Callable[[PlacedConfig], int]) -> Callable[[int], Work]:
    """Work that kills its own process so many times, and publishes how often it was begun."""

    def dying(times: int) -> Work:
        def work(config: PlacedConfig) -> Artifact:
            begun = begin(config)
            if begun <= times:
                os.kill(os.getpid(), signal.SIGKILL)
            return make(config, "model", {}, lambda folder: {"begun": begun})

        return work

    return dying


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


def test_what_a_stage_raises_at_its_place_is_raised_here_as_it_was(
    local_ray: None, tmp_path: Path, begin: Callable[[PlacedConfig], int]
) -> None:
    def fail(config: QuantizeConfig) -> Artifact:
        begin(config)
        raise MissingInput(f"no {config.student}")

    with pytest.raises(MissingInput, match=r"^no heal$"):
        run_at_place(fail, QuantizeConfig(run_root=str(tmp_path), place=PlaceConfig()))
    assert (tmp_path / "begun").read_text() == "x"  # what raised is not tried again


def test_a_stage_whose_process_dies_is_begun_again(local_ray: None, tmp_path: Path, dying: Callable[[int], Work]) -> None:
    made = run_at_place(dying(1), QuantizeConfig(run_root=str(tmp_path), place=PlaceConfig()))
    assert made.manifest.metrics["begun"] == 2


def test_the_lock_of_a_process_that_is_gone_is_waited_for(local_ray: None, tmp_path: Path, begin: Callable[[PlacedConfig], int]) -> None:
    """A network's file system keeps a lost machine's lock for a while."""

    def work(config: PlacedConfig) -> Artifact:
        begun = begin(config)

        def die_first(_: Path) -> dict[str, int]:
            if begun == 1:
                (lock,) = [int(file) for file in os.listdir("/proc/self/fd") if ".w8a8." in os.path.realpath(f"/proc/self/fd/{file}")]
                subprocess.Popen(["sleep", "4"], pass_fds=[lock], start_new_session=True)
                os.kill(os.getpid(), signal.SIGKILL)
            return {"begun": begun}

        return make(config, "model", {}, die_first)

    assert run_at_place(work, QuantizeConfig(run_root=str(tmp_path), place=PlaceConfig())).manifest.metrics["begun"] > 2


def test_a_stage_whose_process_always_dies_ends_with_a_message(local_ray: None, tmp_path: Path, dying: Callable[[int], Work]) -> None:
    with pytest.raises(NoProgress, match=r"^w8a8: the node or process that worked on it was lost 3 times; the last time: The worker died"):
        run_at_place(dying(9), QuantizeConfig(run_root=str(tmp_path), place=PlaceConfig()))
    assert (tmp_path / "begun").read_text() == "xxx"


def test_a_place_that_no_node_has_is_refused_at_once(local_ray: None) -> None:
    with pytest.raises(PlanTooBig, match=r"w8a8 needs 1 CPUs and 8 GPUs of one node .* such nodes have 8 and 0"):
        check_places([QuantizeConfig(place=PlaceConfig(num_gpus=8))])
