"""The curriculum as config: which transfers make the student, and what each starts from."""

from pathlib import Path
from typing import Any

import pytest

from supertiny.config import load
from supertiny.errors import ConfigError
from supertiny.pipeline.config import PipelineConfig
from supertiny.train.config import DistillConfig, RlConfig

DEMO = Path(__file__).resolve().parents[2] / "jobs" / "configs" / "demo" / "pipeline.toml"
BASE = "package://supertiny.tasks.assistant/models/base"


def pipeline(*overrides: str) -> PipelineConfig:
    return load(PipelineConfig, DEMO, overrides)


def students(config: PipelineConfig) -> dict[str, str]:
    """What each stage of the curriculum, the cut and the stage after it start from."""
    stages: list[Any] = [getattr(config, section) for section in (*config.curriculum, "prune", "heal")]
    return {stage.name: stage.student for stage in stages}


def test_the_default_curriculum_is_what_did_best_and_the_demo_shows_more() -> None:
    assert students(pipeline()) == {"distill": BASE, "rl": "distill", "prune": "rl", "heal": "prune"}
    snips = load(PipelineConfig, DEMO.parents[1] / "snips" / "pipeline.toml", [])
    assert students(snips) == {"sft": "base", "prune": "sft", "heal": "prune"}


def test_sft_is_as_distillation_but_for_the_teacher() -> None:
    config = pipeline("distill.learning_rate=0.01", "distill.losses={tail_penalty = 10.0}", "distill.min_divergence=0.1", "sft.epochs=7")
    assert (config.sft.learning_rate, config.sft.epochs, config.sft.min_divergence) == (0.01, 7, None)
    assert config.sft.losses.weights() == {"cross_entropy": 1}


def test_any_order_links_every_stage_to_the_one_before_it() -> None:
    config = pipeline('curriculum=["sft", "rl", "distill", "on_policy"]', 'base="mine"')
    assert students(config) == {
        "sft": "mine", "rl": "sft", "distill": "rl", "on_policy": "distill", "prune": "on_policy", "heal": "prune",
    }  # fmt: skip


def test_without_a_curriculum_the_base_is_cut() -> None:
    assert students(pipeline("curriculum=[]")) == {"prune": BASE, "heal": "prune"}


def test_a_stage_that_names_its_student_is_taken_at_its_word() -> None:
    assert students(pipeline('rl.student="elsewhere"')) == {"distill": BASE, "rl": "elsewhere", "prune": "rl", "heal": "prune"}


def test_the_sections_of_the_curriculum_are_what_their_names_say() -> None:
    config = pipeline('teacher="strong"')
    assert config.sft.losses.weights() == {"cross_entropy": 1}
    assert config.distill.losses.weights() == {"cross_entropy": 1, "forward_kl": 1}
    assert config.on_policy.mode == "on_policy"
    assert config.on_policy.on_policy is not None
    assert config.on_policy.on_policy.teacher == "strong"
    assert isinstance(config.rl, RlConfig)
    assert isinstance(config.heal, DistillConfig)


def test_healing_may_be_on_policy_and_has_the_chains_teacher_too() -> None:
    config = pipeline('teacher="strong"', 'heal.mode="on_policy"', "heal.losses={forward_kl = 1.0}", "aware.max_rounds=0")
    for heal in (config.heal, config.recover.heal):
        assert heal.on_policy is not None
        assert heal.on_policy.teacher == "strong"


@pytest.mark.parametrize(
    ("curriculum", "problem"),
    [
        ('["rl", "distill", "rl"]', "rl is there twice"),
        ('["destill"]', "curriculum.0: Input should be 'sft', 'distill', 'on_policy' or 'rl'"),
    ],
)
def test_a_curriculum_that_cannot_be_is_refused(curriculum: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        pipeline(f"curriculum={curriculum}")
