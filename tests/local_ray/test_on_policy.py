"""On-policy distillation with real workers: the student comes nearer to the teacher, and the weights are chosen by what it gets right."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from tiny_rollouts import gold_rollouts, make_student, publish_rollouts

from supertiny.artifacts import open_artifact
from supertiny.errors import ConfigError
from supertiny.train.config import DistillConfig
from supertiny.train.distill import distill
from supertiny.train.metrics import read_metrics
from supertiny.train.students import open_tokenizer

MODELS = "package://supertiny.tasks.assistant/models"
SETTINGS: dict[str, Any] = {
    "mode": "on_policy",
    "student": f"{MODELS}/base",
    "on_policy": {"teacher": f"{MODELS}/teacher"},
    "epochs": 4.0,
    "batch": 32,
    "micro_batch": 16,
    "learning_rate": 5e-4,
    "checkpoint_every_steps": 6,
    "log_every_steps": 4,
    "stall_seconds": 60,
    "validation": {"fraction": 0.2, "every_steps": 4},
}


@pytest.fixture(scope="module")
def run_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run root with rollouts."""
    root = tmp_path_factory.mktemp("on_policy")
    publish_rollouts(root, gold_rollouts(open_tokenizer(open_artifact(f"{MODELS}/base", "", "model").path), 160))
    return root


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_the_student_comes_nearer_to_the_teacher_and_the_best_weights_are_published(run_root: Path) -> None:
    artifact = distill(DistillConfig(run_root=str(run_root), **SETTINGS))
    history = read_metrics(artifact.path / "metrics.jsonl")
    assert fmean(step["loss"] for step in history[-4:]) < 0.9 * fmean(step["loss"] for step in history[:4])
    assert set(artifact.manifest.parents) == {"student", "rollouts", "teacher"}
    asked = {int(step["step"]): step["validation_exact_match"] for step in history if "validation_exact_match" in step}
    metrics = artifact.manifest.metrics
    assert list(asked) == [*range(4, metrics["steps"] + 1, 4)] + [metrics["steps"]] * (metrics["steps"] % 4 > 0)
    assert metrics["validation_exact_match_best"] >= max(asked.values())
    assert metrics["best_step"] in {0, *asked}
    assert metrics["parameters"] == open_artifact(f"{MODELS}/base", "", "model").manifest.metrics["parameters"]
    assert list((artifact.path / "tensorboard").iterdir())
    assert not list(artifact.path.glob(".*"))


def test_a_student_of_other_tokens_is_refused_before_anything_starts(run_root: Path) -> None:
    make_student(run_root, "other")
    with pytest.raises(ConfigError, match="do not share a tokenizer"):
        distill(DistillConfig(run_root=str(run_root), **{**SETTINGS, "student": "other", "name": "refused"}))
    assert not list(run_root.glob(".refused*"))
