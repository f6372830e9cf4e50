"""What a dry run of quantizing says before a weight is read; those of cutting are in test_solver.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_shapes import QWEN_HALF_BILLION

from supertiny.compress.config import QuantizeConfig
from supertiny.compress.dry_run import describe_format
from supertiny.config import PlaceConfig
from supertiny.errors import ConfigError, MissingInput

JOB = Path(__file__).parents[2] / "jobs" / "quantize.py"


def student(folder: Path, text: str = "") -> str:
    (folder / "config.json").write_text(text or json.dumps(QWEN_HALF_BILLION))
    return str(folder)


def test_the_bytes_before_and_after_are_said(tmp_path: Path) -> None:
    said = describe_format(QuantizeConfig(student=student(tmp_path), format="awq_w4a16"))
    assert said == "494,032,768 parameters: 988.1 MB in bfloat16, 458.3 MB in awq_w4a16"
    assert describe_format(QuantizeConfig(student=student(tmp_path))).endswith("630.8 MB in w8a8")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"format": "gptq_w4a16", "tensor_parallel_size": 2}, "group_size 128 does not divide .* over 2 workers"),
        ({"format": "fp8_dynamic", "place": PlaceConfig()}, "format fp8_dynamic is for GPUs"),
    ],
)
def test_what_the_run_would_refuse_is_refused(tmp_path: Path, settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        describe_format(QuantizeConfig(student=student(tmp_path), **settings))


def test_a_config_that_is_no_json_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json is not JSON"):
        describe_format(QuantizeConfig(student=student(tmp_path, "{")))


def test_a_path_where_no_config_can_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match=r"no config\.json there"):
        describe_format(QuantizeConfig(student=str(tmp_path)))


def test_a_student_that_is_not_made_yet_is_no_problem_and_a_gpu_is_looked_for_where_the_stage_will_run(tmp_path: Path) -> None:
    assert "no sizes: heal: nothing at" in describe_format(QuantizeConfig(run_root=str(tmp_path)))
    assert "no sizes" in describe_format(QuantizeConfig(run_root=str(tmp_path), format="fp8_dynamic", place=PlaceConfig(num_gpus=1)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU it is not refused")
def test_a_dry_run_of_a_format_for_gpus_ends_with_2_on_a_cpu(tmp_path: Path) -> None:
    settings = [f"run_root={tmp_path}", "format=fp8_dynamic", "name=fp8"]
    command = [sys.executable, str(JOB), "--dry-run", *(part for setting in settings for part in ("--set", setting))]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (ran.returncode, "fp8_dynamic is for GPUs and this machine has none" in ran.stderr) == (2, True)
