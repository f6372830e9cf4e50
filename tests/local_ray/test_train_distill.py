"""Distillation with real workers: what it publishes, and that a killed run goes on where it was."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import ray
from tiny_rollouts import assistant_tokenizer, gold_rollouts, make_student, publish_rollouts
from train_runs import finished_checkpoints, training_workers, wait_for

from supertiny.artifacts import open_artifact, stage_key
from supertiny.errors import ConfigError, CorruptArtifact, MissingInput, NotFinite, PlanTooBig
from supertiny.train.config import DistillConfig
from supertiny.train.distill import distill
from supertiny.train.metrics import read_metrics

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]
NUM_ROWS = 64
SETTINGS: dict[str, Any] = {
    "student": "base",
    "epochs": 6.0,
    "batch": 16,
    "micro_batch": 4,
    "learning_rate": 3e-3,
    "checkpoint_every_steps": 4,
    "log_every_steps": 4,
    "stall_seconds": 60,
}
NUM_STEPS = 24


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run root with a student and rollouts."""
    root = tmp_path_factory.mktemp("inputs")
    make_student(root)
    publish_rollouts(root, gold_rollouts(assistant_tokenizer(), NUM_ROWS))
    return root


def config_in(root: Path, inputs: Path, **values: Any) -> DistillConfig:
    """The same distillation in another run root."""
    for name in ("base", "rollouts"):
        if not (root / name).exists():
            shutil.copytree(inputs / name, root / name)
    return DistillConfig(run_root=str(root), **{**SETTINGS, **values})


@pytest.fixture(scope="module")
def undisturbed(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of a run that nothing happened to."""
    return distill(config_in(tmp_path_factory.mktemp("undisturbed"), inputs)).path


def start_driver(checkout: Path, root: Path, **values: Any) -> subprocess.Popen[bytes]:
    """`jobs/distill.py` with the settings of `config_in`, in a process of its own."""
    toml = root / "distill.toml"
    toml.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in {**SETTINGS, **values}.items()))
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    command = [sys.executable, "jobs/distill.py", "--config", str(toml), "--set", f"run_root={root}"]
    return subprocess.Popen(command, cwd=checkout, env=environment)


def steps_and_losses(folder: Path) -> list[tuple[float, float]]:
    """What makes two runs the same run."""
    return [(line["step"], line["loss"]) for line in read_metrics(folder / "metrics.jsonl")]


def first_gradient_norm(folder: Path) -> float:
    """Before it is clipped."""
    return read_metrics(folder / "metrics.jsonl")[0]["gradient_norm"]


def test_a_student_learns_the_rollouts_and_is_published_as_a_plain_model_folder(undisturbed: Path, inputs: Path) -> None:
    from transformers import AutoModelForCausalLM

    artifact = open_artifact(str(undisturbed), "", "model")
    metrics = artifact.manifest.metrics
    assert metrics["loss_last"] < 0.7 * metrics["loss_first"]
    assert (metrics["rows"], metrics["rows_left_out"], metrics["steps"]) == (NUM_ROWS, 0, NUM_STEPS)
    assert set(artifact.manifest.parents) == {"student", "rollouts"}
    assert (undisturbed / "tokenizer.json").read_bytes() == (inputs / "base" / "tokenizer.json").read_bytes()
    assert not list(undisturbed.glob(".*"))
    model = AutoModelForCausalLM.from_pretrained(undisturbed)
    assert str(model.dtype) == "torch.bfloat16"
    assert sum(weights.numel() for weights in model.parameters()) == metrics["parameters"]
    assert [step for step, _ in steps_and_losses(undisturbed)] == list(range(1, NUM_STEPS + 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [
        {"num_workers": 1},
        pytest.param({"num_workers": 4, "zero_stage": 2}, marks=pytest.mark.soak),  # two workers at stage 2 are killed below
        {"zero_stage": 3, "line_tokens": 128},
    ],
    ids=["1 x 4", "4 x 1, ZeRO 2", "2 x 2, ZeRO 3, packed"],
)
def test_workers_accumulation_zero_and_packing_leave_the_loss_curve_as_it_is(
    values: dict[str, int], undisturbed: Path, inputs: Path, tmp_path: Path
) -> None:
    folder = distill(config_in(tmp_path, inputs, **values)).path
    losses = zip(steps_and_losses(folder), steps_and_losses(undisturbed), strict=True)
    assert all(one[1] == pytest.approx(other[1], rel=0.05) for one, other in losses)  # they round in another order
    assert first_gradient_norm(folder) == pytest.approx(first_gradient_norm(undisturbed), rel=0.05)  # Adam would hide another scale


@pytest.mark.slow
def test_a_student_is_trained_through_the_rounding_where_that_is_asked_for(undisturbed: Path, inputs: Path, tmp_path: Path) -> None:
    aware = {"format": "awq_w4a16", "group_size": 32}
    losses = steps_and_losses(distill(config_in(tmp_path, inputs, epochs=2.0, quantization_aware=aware)).path)
    assert losses[0] != steps_and_losses(undisturbed)[0]  # of the same weights, which the first step has not moved yet
    assert losses[-1][1] < 0.95 * losses[0][1]


@pytest.mark.slow
def test_every_named_term_and_the_mask_are_in_the_metrics_of_every_step(inputs: Path, tmp_path: Path) -> None:
    weights = {"cross_entropy": 1.0, "forward_kl": 0.5, "tail_penalty": 10.0}
    artifact = distill(config_in(tmp_path, inputs, epochs=1.0, losses=weights, min_divergence=0.01))
    for step in read_metrics(artifact.path / "metrics.jsonl"):
        assert step["loss"] == pytest.approx(sum(weight * step[name] for name, weight in weights.items()))
        assert 0 < step["divergent_fraction"] <= 1
        assert 0 < step["entropy"] < math.log(1024)  # that of the vocabulary's size
        assert 0 < step["tail_penalty"] < 1
    assert {"cross_entropy_last", "forward_kl_last", "tail_penalty_last"} <= artifact.manifest.metrics.keys()


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize("zero_stage", [1, 3])
def test_fewer_workers_go_on_with_what_more_of_them_left(
    zero_stage: int, undisturbed: Path, inputs: Path, checkout: Path, tmp_path: Path
) -> None:
    toml = tmp_path / "distill.toml"
    toml.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in {**SETTINGS, "zero_stage": zero_stage}.items()))
    config_in(tmp_path / "two", inputs)
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    driver = subprocess.Popen(
        [sys.executable, "jobs/distill.py", "--config", str(toml), "--set", f"run_root={tmp_path / 'two'}"], cwd=checkout, env=environment
    )
    wait_for(lambda: finished_checkpoints(tmp_path / "two"), driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    wait_for(lambda: not training_workers())
    (left,) = (tmp_path / "two").glob(".distill.*.partial")

    config = config_in(tmp_path / "one", inputs, zero_stage=zero_stage, num_workers=1)
    parents = {
        "student": open_artifact("base", config.run_root, "model"),
        "rollouts": open_artifact("rollouts", config.run_root, "rollouts"),
    }
    shutil.copytree(left, tmp_path / "one" / f".distill.{stage_key(config, 'model', parents)[:8]}.partial")
    losses = zip(steps_and_losses(distill(config).path), steps_and_losses(undisturbed), strict=True)
    assert all(one == (other[0], pytest.approx(other[1], rel=0.05)) for one, other in losses)


@pytest.mark.slow
def test_lora_and_validation_end_in_a_plain_model_of_the_best_weights(inputs: Path, undisturbed: Path, tmp_path: Path) -> None:
    values = {"lora": {"rank": 4}, "validation": {"fraction": 0.2, "every_steps": 5, "max_completion_tokens": 8}}
    artifact = distill(config_in(tmp_path, inputs, epochs=2.0, **values))
    metrics = artifact.manifest.metrics
    asked = [int(line["step"]) for line in read_metrics(artifact.path / "metrics.jsonl") if "validation_exact_match" in line]
    assert asked == [5, metrics["steps"]]
    assert metrics["best_step"] in {0, *asked}
    assert metrics["rows"] < NUM_ROWS
    assert metrics["parameters"] == open_artifact(str(undisturbed), "", "model").manifest.metrics["parameters"]


@pytest.mark.slow
def test_earlier_rollouts_are_replayed_and_are_parents(inputs: Path, tmp_path: Path) -> None:
    config = config_in(tmp_path, inputs, epochs=1.0, replay={"rollouts": ["june"], "fraction": 0.2})
    publish_rollouts(tmp_path, gold_rollouts(assistant_tokenizer(), 40), "june")
    artifact = distill(config)
    assert artifact.manifest.metrics["rollouts_replayed"] == 16  # of 64 + 16
    assert artifact.manifest.metrics["rows"] == 80
    assert set(artifact.manifest.parents) == {"student", "rollouts", "replay:june"}


def test_terms_of_a_teacher_are_refused_for_rollouts_without_one(inputs: Path, tmp_path: Path) -> None:
    config = config_in(tmp_path, inputs, rollouts="without")
    publish_rollouts(tmp_path, gold_rollouts(assistant_tokenizer(), 1), "without")
    with pytest.raises(
        ConfigError, match=r"losses.forward_kl without effect: none of the 1 rows .* train on \[losses\] cross_entropy alone"
    ):
        distill(config)


def test_a_finished_distillation_is_not_done_again(undisturbed: Path, inputs: Path) -> None:
    published = (undisturbed / "manifest.json").stat().st_mtime_ns
    assert distill(config_in(undisturbed.parent, inputs)).path == undisturbed
    assert (undisturbed / "manifest.json").stat().st_mtime_ns == published


@pytest.mark.slow
def test_a_job_that_is_told_to_end_writes_a_checkpoint_first(inputs: Path, checkout: Path, tmp_path: Path) -> None:
    values = {"epochs": 12.0, "checkpoint_every_steps": 10_000}
    config = config_in(tmp_path, inputs, **values)
    driver = start_driver(checkout, tmp_path, **values)
    wait_for(lambda: any(tmp_path.glob(".distill.*.partial/metrics.jsonl")), driver)
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(60) == 1
    (step,) = finished_checkpoints(tmp_path)
    assert 1 <= step < 2 * NUM_STEPS
    assert [step for step, _ in steps_and_losses(distill(config).path)] == list(range(1, 2 * NUM_STEPS + 1))


@pytest.mark.slow
def test_a_killed_driver_goes_on_from_the_last_checkpoint(undisturbed: Path, inputs: Path, checkout: Path, tmp_path: Path) -> None:
    config = config_in(tmp_path, inputs)
    driver = start_driver(checkout, tmp_path)
    wait_for(lambda: finished_checkpoints(tmp_path)[1:], driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    wait_for(lambda: not training_workers())
    (partial,) = tmp_path.glob(".distill.*.partial")
    step = max(finished_checkpoints(tmp_path))
    before = (partial / "metrics.jsonl").read_text().splitlines()[:step]

    everything_damaged(partial, tmp_path / "damaged")
    with pytest.raises(CorruptArtifact, match="every checkpoint is damaged"):
        distill(config_in(tmp_path / "damaged", inputs))

    artifact = distill(config)
    assert steps_and_losses(artifact.path) == steps_and_losses(undisturbed)  # no batch left out, none seen twice
    assert (artifact.path / "metrics.jsonl").read_text().splitlines()[:step] == before  # seconds and all: nothing was redone


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_all_go_on_from_the_last_checkpoint(undisturbed: Path, inputs: Path, tmp_path: Path) -> None:
    config = config_in(tmp_path, inputs, zero_stage=2)
    outcome: list[Any] = []
    run = threading.Thread(target=lambda: outcome.append(distill(config)), daemon=True)
    run.start()
    wait_for(lambda: finished_checkpoints(tmp_path))
    training_workers()[-1].kill()
    run.join(timeout=120)
    assert [step for step, _ in steps_and_losses(outcome[0].path)] == list(range(1, NUM_STEPS + 1))
    losses = zip(steps_and_losses(outcome[0].path), steps_and_losses(undisturbed), strict=True)
    assert all(one[1] == pytest.approx(other[1], rel=0.05) for one, other in losses)  # ZeRO 2 rounds in another order


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_the_run_at_once_and_names_its_rollouts(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFinite, match=r"not finite in a batch of the rollouts \S+/0"):
        distill(config_in(tmp_path, inputs, learning_rate=1.0, gradient_clip=1e30, losses={"forward_kl": 1e38}))


def test_more_workers_than_the_cluster_has_cpus_are_refused(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanTooBig, match="64 training workers need 64 logical CPUs, the cluster has 8"):
        distill(config_in(tmp_path, inputs, num_workers=64, batch=256))


def test_what_is_missing_damaged_or_too_long_is_said_before_anything_starts(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="nowhere"):
        distill(config_in(tmp_path, inputs, student="nowhere"))
    with pytest.raises(ConfigError, match=r"none of the 64 rollouts .* has at most 5 tokens"):
        distill(config_in(tmp_path, inputs, max_tokens=5))
    table = tmp_path / "rollouts" / "rollouts.parquet"
    table.write_bytes(table.read_bytes()[:-100])
    with pytest.raises(CorruptArtifact, match=r"rollouts.parquet: \d+ bytes, the manifest says"):
        distill(config_in(tmp_path, inputs))


def everything_damaged(partial: Path, root: Path) -> None:
    """A copy of an unfinished run, one bit flipped in every checkpoint."""
    shutil.copytree(partial, root / partial.name)
    for state in root.glob("*/.train/workers/step-*/deepspeed/*model_states.pt"):
        content = bytearray(state.read_bytes())
        content[len(content) // 2] ^= 1
        state.write_bytes(content)
