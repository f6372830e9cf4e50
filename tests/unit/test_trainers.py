"""A run of TRL's trainers that was killed goes on where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny_rollouts import make_student
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerControl, TrainerState

from supertiny.config import validate
from supertiny.train import grpo, on_policy
from supertiny.train.config import DistillConfig, RlConfig
from supertiny.train.notice import AnswerNotice
from supertiny.train.trainers import SealCheckpoints

BATCH = {"batch": 8, "micro_batch": 8, "num_workers": 1, "zero_stage": None}
PROMPTS = Dataset.from_list([{"prompt": str(at), "prompt_id": str(at)} for at in range(12)])
STEPS = 25


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student(tmp_path_factory.mktemp("models"))


def grpo_sampler(folder: Path, steps_done: int) -> Any:
    """Of groups of 2, so 4 prompts a step."""
    config = validate(RlConfig, {**BATCH, "group_size": 2, "kl_coef": 0.0, "steps": STEPS}, "test")
    trainer = grpo.Grpo(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        reward_funcs=[lambda completion_ids, **_: [0.0] * len(completion_ids)],
        args=grpo.trainer_settings(config, 1, folder),
        train_dataset=PROMPTS,
        processing_class=AutoTokenizer.from_pretrained(folder),
        group_size=2,
        drop_equal_groups=True,
        steps_done=steps_done,
    )
    return trainer._get_train_sampler()


def on_policy_sampler(folder: Path, steps_done: int) -> Any:
    config = validate(DistillConfig, {**BATCH, "mode": "on_policy", "batch": 4, "micro_batch": 4}, "test")
    model, teacher = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for _ in range(2))
    trainer = on_policy.OnPolicy(
        model=model,
        teacher_model=teacher,
        args=on_policy.trainer_settings(config, STEPS, 1, folder),
        train_dataset=PROMPTS,
        processing_class=AutoTokenizer.from_pretrained(folder),
        steps_done=steps_done,
    )
    return trainer._get_train_sampler()


@pytest.mark.parametrize("sampler_of", [grpo_sampler, on_policy_sampler])
def test_a_run_that_goes_on_has_the_prompts_of_the_pass_that_it_was_in(sampler_of: Any, folder: Path) -> None:
    """12 prompts, 4 a step: the first pass is over after 3 steps, the second after 6."""
    undisturbed = sampler_of(folder, 0)
    passes = [list(undisturbed) for _ in range(3)]
    assert passes[0] != passes[1] != passes[2]
    for steps_done, its_pass in ((2, 0), (3, 1), (5, 1), (7, 2)):
        assert list(sampler_of(folder, steps_done)) == passes[its_pass]


class Noticed:
    """A notice in every step."""

    def came(self) -> bool:
        return True


@pytest.mark.parametrize(("step", "saved"), [(STEPS - 1, True), (STEPS, False)])
def test_a_notice_in_the_last_step_does_not_keep_the_run_from_its_end(step: int, saved: bool) -> None:
    control = TrainerControl()
    AnswerNotice(Noticed()).on_step_end(None, TrainerState(global_step=step, max_steps=STEPS), control)
    assert control.should_save is saved


@pytest.mark.parametrize(("step", "saved"), [(STEPS - 1, True), (STEPS, False)])
def test_there_is_no_checkpoint_after_the_last_step_which_a_run_could_not_go_on_from(step: int, saved: bool, tmp_path: Path) -> None:
    control = TrainerControl(should_save=True)
    SealCheckpoints(tmp_path).on_step_end(None, TrainerState(global_step=step, max_steps=STEPS), control)
    assert control.should_save is saved
