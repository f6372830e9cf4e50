import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from evaluation_artifacts import publish_evaluation, publish_model, row, rows

from supertiny.artifacts import Artifact, open_artifact
from supertiny.config import validate
from supertiny.errors import ConfigError, CorruptArtifact
from supertiny.evaluate.config import GateConfig
from supertiny.evaluate.gate import DISAGREEMENTS, gate
from supertiny.evaluate.schema import GateMetrics


def publish(run_root: Path, name: str, num_right: int, n: int = 1000) -> Artifact:
    """An evaluation of which the first `num_right` prompts are right."""
    return publish_evaluation(run_root, publish_model(run_root, name, contents=name), rows([index < num_right for index in range(n)]))


def config(run_root: Path, **changes: object) -> GateConfig:
    return validate(GateConfig, {"run_root": str(run_root), "candidate": "eval-awq", **changes}, "test")


@pytest.mark.parametrize(("num_right", "verdict"), [(970, "pass"), (925, "inconclusive"), (880, "fail")])
def test_the_verdict_follows_the_paired_difference(tmp_path: Path, num_right: int, verdict: str) -> None:
    publish(tmp_path, "teacher", 970)
    publish(tmp_path, "awq", num_right)
    metrics = GateMetrics.model_validate(gate(config(tmp_path)).manifest.metrics)
    assert metrics.verdict == verdict
    assert metrics.difference.value == pytest.approx((num_right - 970) / 1000)
    assert (metrics.candidate_only, metrics.baseline_only) == (0, 970 - num_right)
    assert metrics.slices["out_of_scope"].value == pytest.approx((num_right - 970) / 1000)


def test_the_gate_names_the_model_that_was_evaluated_by_its_hash(tmp_path: Path) -> None:
    publish(tmp_path, "teacher", 970)
    model = publish_model(tmp_path, "awq")
    publish_evaluation(tmp_path, model, rows([True] * 1000))
    metrics = GateMetrics.model_validate(gate(config(tmp_path)).manifest.metrics)
    assert metrics.candidate.model == model.as_parent(tmp_path)


def test_prompts_are_paired_by_id_and_not_by_position(tmp_path: Path) -> None:
    judged = rows([index % 10 != 0 for index in range(1000)])
    publish_evaluation(tmp_path, publish_model(tmp_path, "teacher", contents="t"), judged)
    publish_evaluation(tmp_path, publish_model(tmp_path, "awq"), judged[::-1])
    made = gate(config(tmp_path))
    metrics = GateMetrics.model_validate(made.manifest.metrics)
    assert (metrics.candidate_only, metrics.baseline_only) == (0, 0)
    assert pq.read_table(made.path / DISAGREEMENTS).num_rows == 0


def test_disagreements_are_kept_for_a_person_to_read(tmp_path: Path) -> None:
    publish_evaluation(tmp_path, publish_model(tmp_path, "teacher", contents="t"), [row(0, True), row(1, False), row(2, True)])
    publish_evaluation(tmp_path, publish_model(tmp_path, "awq"), [row(0, False), row(1, True), row(2, True)])
    made = gate(config(tmp_path, min_prompts=3))
    kept = {one["prompt_id"]: one["right"] for one in pq.read_table(made.path / DISAGREEMENTS).to_pylist()}
    assert kept == {"prompt-00000": "baseline", "prompt-00001": "candidate"}


def test_different_prompts_are_refused_and_one_is_named(tmp_path: Path) -> None:
    publish_evaluation(tmp_path, publish_model(tmp_path, "teacher", contents="t"), [row(index, True) for index in range(1000)])
    publish_evaluation(tmp_path, publish_model(tmp_path, "awq"), [row(index, True) for index in range(1, 1001)])
    with pytest.raises(ConfigError, match=r"2 are in one alone, such as prompt-00000"):
        gate(config(tmp_path))
    assert not (tmp_path / "gate").exists()


def test_too_few_prompts_decide_nothing(tmp_path: Path) -> None:
    publish(tmp_path, "teacher", 999, n=999)
    publish(tmp_path, "awq", 999, n=999)
    with pytest.raises(ConfigError, match="999 paired prompts; a gate needs 1000"):
        gate(config(tmp_path))


def test_a_cut_predictions_file_is_an_error(tmp_path: Path) -> None:
    publish(tmp_path, "teacher", 1000)
    evaluation = publish(tmp_path, "awq", 1000)
    table = evaluation.path / "predictions.parquet"
    table.write_bytes(table.read_bytes()[:-100])
    with pytest.raises(CorruptArtifact, match=r"predictions\.parquet"):
        gate(config(tmp_path))


def test_a_model_is_no_evaluation(tmp_path: Path) -> None:
    publish(tmp_path, "teacher", 1000)
    publish_model(tmp_path, "awq")
    with pytest.raises(CorruptArtifact, match="a model artifact where a evaluation is needed"):
        gate(config(tmp_path, candidate="awq"))


def test_an_evaluation_made_again_is_compared_again(tmp_path: Path) -> None:
    publish(tmp_path, "teacher", 970)
    evaluation = publish(tmp_path, "awq", 970)
    assert gate(config(tmp_path)).manifest.metrics["verdict"] == "pass"
    shutil.rmtree(evaluation.path)
    publish(tmp_path, "awq", 880)  # the same settings, other answers
    assert gate(config(tmp_path)).manifest.metrics["verdict"] == "fail"


def test_a_comparison_that_is_refused_takes_no_earlier_one_away(tmp_path: Path) -> None:
    publish(tmp_path, "teacher", 970)
    publish(tmp_path, "awq", 970)
    publish(tmp_path, "w8a8", 970)
    made = gate(config(tmp_path))
    with pytest.raises(ConfigError, match="a gate needs 5000"):
        gate(config(tmp_path, candidate="eval-w8a8", min_prompts=5000))
    assert open_artifact("gate", str(tmp_path), "gate") == made


def test_the_same_comparison_is_made_once(tmp_path: Path) -> None:
    publish(tmp_path, "teacher", 970)
    publish(tmp_path, "awq", 970)
    assert gate(config(tmp_path)).manifest == gate(config(tmp_path)).manifest
