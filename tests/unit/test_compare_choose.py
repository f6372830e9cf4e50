from pathlib import Path

import pytest
from evaluation_artifacts import publish_evaluation, publish_model, row, rows

from supertiny.artifacts import Artifact
from supertiny.errors import ConfigError
from supertiny.evaluate.choose import better


def publish(run_root: Path, name: str, num_right: int, each: float) -> Artifact:
    judged = rows([index < num_right for index in range(1000)])
    return publish_evaluation(run_root, publish_model(run_root, name, contents=name), judged, seconds={"each": each})


def test_the_surely_more_accurate_model_goes_on_even_if_it_costs_more(tmp_path: Path) -> None:
    awq, w8a8 = publish(tmp_path, "awq", 900, each=0.002), publish(tmp_path, "w8a8", 950, each=0.004)
    assert better(awq, w8a8) is w8a8
    assert better(w8a8, awq) is w8a8


def test_of_two_that_are_as_accurate_the_cheaper_goes_on(tmp_path: Path) -> None:
    awq, w8a8 = publish(tmp_path, "awq", 948, each=0.002), publish(tmp_path, "w8a8", 950, each=0.004)
    assert better(awq, w8a8) is awq
    assert better(w8a8, awq) is awq


def test_a_model_that_gets_nothing_right_is_not_the_cheaper_one(tmp_path: Path) -> None:
    few = publish(tmp_path, "awq", 1, each=0.002)
    none = publish(tmp_path, "w8a8", 0, each=0.001)
    assert better(few, none) is few


def test_evaluations_of_different_prompts_do_not_compare(tmp_path: Path) -> None:
    awq = publish(tmp_path, "awq", 948, each=0.002)
    other = publish_evaluation(tmp_path, publish_model(tmp_path, "w8a8", contents="w"), [row(index, True) for index in range(7, 1007)])
    with pytest.raises(ConfigError, match="eval-awq and eval-w8a8 asked different prompts"):
        better(awq, other)
