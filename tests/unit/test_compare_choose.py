from pathlib import Path

import pytest
from evaluation_artifacts import publish_evaluation, publish_model, row, rows

from supertiny.artifacts import Artifact
from supertiny.errors import ConfigError
from supertiny.evaluate.choose import Chosen, best


def chosen(*evaluations: Artifact) -> Chosen:
    """By the costs that were published."""
    metrics = {each.manifest.name.removeprefix("eval-"): each.manifest.metrics for each in evaluations}
    costs = {name: each["usd_per_thousand_correct"] for name, each in metrics.items()}
    return best(dict(zip(metrics, evaluations, strict=True)), costs)


def publish(run_root: Path, name: str, num_right: int, each: float) -> Artifact:
    judged = rows([index < num_right for index in range(1000)])
    return publish_evaluation(run_root, publish_model(run_root, name, contents=name), judged, seconds={"each": each})


def test_the_surely_more_accurate_model_goes_on_even_if_it_costs_more(tmp_path: Path) -> None:
    awq, w8a8 = publish(tmp_path, "awq", 900, each=0.002), publish(tmp_path, "w8a8", 950, each=0.004)
    assert chosen(awq, w8a8).name == "w8a8"
    assert chosen(w8a8, awq).name == "w8a8"


def test_of_two_that_are_as_accurate_the_cheaper_goes_on(tmp_path: Path) -> None:
    awq, w8a8 = publish(tmp_path, "awq", 948, each=0.002), publish(tmp_path, "w8a8", 950, each=0.004)
    assert chosen(awq, w8a8).name == "awq"
    assert chosen(w8a8, awq).name == "awq"


def test_it_is_said_why(tmp_path: Path) -> None:
    heal, awq = publish(tmp_path, "heal", 950, each=0.004), publish(tmp_path, "awq", 900, each=0.001)
    w8a8 = publish(tmp_path, "w8a8", 949, each=0.003)
    assert chosen(heal, awq).why == "the most accurate"
    assert chosen(heal, awq, w8a8).why == "as accurate as heal, and cheaper per right answer"


def test_of_several_the_cheapest_of_those_as_accurate_as_the_most_accurate_goes_on(tmp_path: Path) -> None:
    heal, awq = publish(tmp_path, "heal", 950, each=0.004), publish(tmp_path, "awq", 900, each=0.001)
    w8a8, fp8 = publish(tmp_path, "w8a8", 949, each=0.003), publish(tmp_path, "fp8", 948, each=0.002)
    assert chosen(heal, awq, w8a8, fp8).name == "fp8"
    assert chosen(fp8, w8a8, awq, heal).name == "fp8"
    assert chosen(awq).name == "awq"


def test_what_counts_is_the_distance_from_the_most_accurate_and_not_from_the_next(tmp_path: Path) -> None:
    first, second = publish(tmp_path, "heal", 950, each=0.003), publish(tmp_path, "w8a8", 947, each=0.002)
    third = publish(tmp_path, "awq", 944, each=0.001)
    assert chosen(second, third).name == "awq"
    assert chosen(first, second, third).name == "w8a8"


def test_a_model_that_gets_nothing_right_is_not_the_cheaper_one(tmp_path: Path) -> None:
    few = publish(tmp_path, "awq", 1, each=0.002)
    none = publish(tmp_path, "w8a8", 0, each=0.001)
    assert chosen(few, none).name == "awq"


def test_evaluations_of_different_prompts_do_not_compare(tmp_path: Path) -> None:
    awq = publish(tmp_path, "awq", 948, each=0.002)
    other = publish_evaluation(tmp_path, publish_model(tmp_path, "w8a8", contents="w"), [row(index, True) for index in range(7, 1007)])
    with pytest.raises(ConfigError, match="eval-w8a8 and eval-awq asked different prompts"):
        chosen(awq, other)
