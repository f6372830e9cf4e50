"""Where the chain's one-process stages run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from ray.runtime_env import RuntimeEnv

from supertiny.compress.config import LatencyConfig
from supertiny.config import PlaceConfig, load
from supertiny.errors import ConfigError
from supertiny.pipeline.config import PipelineConfig
from supertiny.pipeline.place import task_options

DEMO = "jobs/configs/demo/pipeline.toml"
AWQ = 'awq.place={image="registry.example/supertiny:gpu-compress",num_gpus=1,labels={"supertiny/group"="train"}}'


@pytest.fixture(autouse=True)
def _in_the_checkout(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout)


def test_a_dry_run_shows_the_image_that_a_stage_chose(checkout: Path) -> None:
    command = [sys.executable, "jobs/pipeline.py", "--dry-run", "--set", AWQ]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert '"image": "registry.example/supertiny:gpu-compress"' in ran.stdout


def test_a_stage_s_image_and_labels_are_what_ray_s_runtime_env_and_scheduler_take() -> None:
    place = load(PipelineConfig, DEMO, [AWQ]).awq.place
    assert place is not None
    options = task_options(place)
    assert RuntimeEnv(**options["runtime_env"]).image_uri() == "registry.example/supertiny:gpu-compress"
    assert (options["num_gpus"], options["label_selector"]) == (1, {"supertiny/group": "train"})


def test_a_place_does_not_change_the_artifact_s_key() -> None:
    chosen, plain = (load(PipelineConfig, DEMO, settings).awq.settings() for settings in ([AWQ], []))
    assert chosen == plain


@pytest.mark.parametrize("section", ["distill", "rollout"])
def test_a_stage_that_spreads_over_nodes_takes_no_place(section: str) -> None:
    with pytest.raises(ConfigError, match=rf"{section}\.place: no such key"):
        load(PipelineConfig, DEMO, [f"{section}.place.num_gpus=1"])


def test_a_speed_measured_elsewhere_is_another() -> None:
    here, there = (LatencyConfig(place=PlaceConfig(num_gpus=gpus)) for gpus in (0, 1))
    assert here.settings() != there.settings()
