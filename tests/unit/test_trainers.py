"""A run of TRL's trainers that was killed goes on where it was."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny_rollouts import make_student
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerControl, TrainerState

from supertiny.config import validate
from supertiny.errors import NotFinite
from supertiny.train import grpo, on_policy
from supertiny.train.config import DistillConfig, RlConfig
from supertiny.train.notice import AnswerNotice
from supertiny.train.plan import DrawPlan
from supertiny.train.schedule import learning_rate
from supertiny.train.trainers import METRICS, SealCheckpoints, Watch

BATCH = {"batch": 8, "micro_batch": 8, "num_workers": 1, "zero_stage": None}
PROMPTS = Dataset.from_list([{"prompt": str(at), "prompt_id": str(at)} for at in range(12)])
STEPS = 25


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student(tmp_path_factory.mktemp("models"))


def grpo_trainer(
    folder: Path,
    steps_done: int = 0,
    reward: Any = lambda completion_ids, **_: [0.0] * len(completion_ids),
    callbacks: Sequence[Any] = (),
) -> grpo.Grpo:
    """Of groups of 2, so 4 prompts a step."""
    config = validate(RlConfig, {**BATCH, "group_size": 2, "kl_coef": 0.0, "steps": STEPS, "max_completion_tokens": 8}, "test")
    return grpo.Grpo(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        reward_funcs=[reward],
        args=grpo.trainer_settings(config, 1, folder),
        train_dataset=PROMPTS,
        processing_class=AutoTokenizer.from_pretrained(folder),
        callbacks=list(callbacks),
        group_size=2,
        drop_equal_groups=True,
        steps_done=steps_done,
        rate=partial(learning_rate, num_steps=STEPS, config=config),
    )


def on_policy_trainer(folder: Path, steps_done: int = 0) -> on_policy.OnPolicy:
    config = validate(DistillConfig, {**BATCH, "mode": "on_policy", "batch": 4, "micro_batch": 4}, "test")
    model, teacher = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for _ in range(2))
    return on_policy.OnPolicy(
        model=model,
        teacher_model=teacher,
        args=on_policy.trainer_settings(config, STEPS, 1, folder),
        train_dataset=PROMPTS,
        processing_class=AutoTokenizer.from_pretrained(folder),
        steps_done=steps_done,
        rate=partial(learning_rate, num_steps=STEPS, config=config),
    )


@pytest.mark.parametrize("trainer_of", [grpo_trainer, on_policy_trainer])
def test_a_run_that_goes_on_has_the_prompts_of_the_pass_that_it_was_in(trainer_of: Any, folder: Path) -> None:
    """12 prompts, 4 a step: the first pass is over after 3 steps, the second after 6."""
    undisturbed = trainer_of(folder)._get_train_sampler()
    passes = [list(undisturbed) for _ in range(3)]
    assert passes[0] != passes[1] != passes[2]
    for steps_done, its_pass in ((2, 0), (3, 1), (5, 1), (7, 2)):
        assert list(trainer_of(folder, steps_done)._get_train_sampler()) == passes[its_pass]


@pytest.mark.parametrize(("trainer_of", "lowest"), [(grpo_trainer, 1.0), (on_policy_trainer, 0.1)])
def test_the_first_step_learns_and_the_last_as_much_as_the_config_says(trainer_of: Any, lowest: float, folder: Path) -> None:
    trainer = trainer_of(folder)
    trainer.create_optimizer_and_scheduler(STEPS)
    rates = []
    for _ in range(STEPS):
        rates.append(trainer.lr_scheduler.get_last_lr()[0] / trainer.args.learning_rate)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert rates[:2] == [0.5, 1.0]  # two steps of 25 are 5 %
    assert rates[-1] == pytest.approx(lowest)


def test_a_group_of_equal_rewards_is_left_out_of_the_loss_and_not_of_the_attention(folder: Path) -> None:
    trainer = grpo_trainer(folder, reward=lambda completion_ids, **_: [1.0, 1.0, 0.0, 1.0])
    trainer.model.train()
    batch = trainer._generate_and_score_completions([PROMPTS[at] for at in (3, 3, 5, 5)])
    assert trainer.prompt_ids == ["3", "3", "5", "5"]
    assert batch["tool_mask"].bool().all(1).tolist() == [False, False, True, True]
    assert not batch["tool_mask"][:2].any()
    assert batch["completion_mask"].any(1).all()
    assert batch["num_items_in_batch"] == batch["completion_mask"][2:].sum()


@pytest.mark.usefixtures("alone")
def test_logits_that_are_no_numbers_stop_the_run_and_name_the_prompts(folder: Path, tmp_path: Path) -> None:
    """TRL writes None then, for the entropy."""
    config = validate(RlConfig, {**BATCH, "group_size": 2, "kl_coef": 0.0, "trackers": []}, "test")
    none = tmp_path / "none"
    plan = DrawPlan(config, folder, teacher=None, prompts=none, validation=none, num_steps=STEPS, checkpoints=none, output=tmp_path)
    watch = Watch(plan, {**METRICS, **grpo.METRICS}, first_step=0, validation=None)
    trainer = watch.trainer = grpo_trainer(folder, reward=lambda completion_ids, **_: list(range(len(completion_ids))), callbacks=[watch])
    spoil = float("nan")  # what is drawn without a gradient is not spoilt
    trainer.model.model.norm.register_forward_hook(lambda _module, _input, hidden: hidden * spoil if torch.is_grad_enabled() else hidden)
    with pytest.raises(NotFinite, match=r"not finite in a batch of the prompts \d+, \d+"):
        trainer.train()


class Noticed:
    """A notice in every step."""

    def came(self) -> bool:
        return True


@pytest.mark.parametrize(("step", "saved"), [(STEPS - 1, True), (STEPS, False)])
def test_a_notice_in_the_last_step_does_not_keep_the_run_from_its_end(step: int, saved: bool) -> None:
    control = TrainerControl()
    AnswerNotice(Noticed()).on_step_end(None, TrainerState(global_step=step, max_steps=STEPS), control)
    assert control.should_save is saved


def test_a_run_that_goes_on_has_the_checkpoints_that_its_config_says_now(folder: Path, tmp_path: Path) -> None:
    config = validate(RlConfig, {**BATCH, "group_size": 2, "checkpoint_every_steps": 5}, "test")
    before = TrainerState(global_step=50, save_steps=50)
    SealCheckpoints(tmp_path).on_train_begin(grpo.trainer_settings(config, 1, folder), before, TrainerControl())
    assert before.save_steps == 5


@pytest.mark.parametrize(("step", "saved"), [(STEPS - 1, True), (STEPS, False)])
def test_there_is_no_checkpoint_after_the_last_step_which_a_run_could_not_go_on_from(step: int, saved: bool, tmp_path: Path) -> None:
    control = TrainerControl(should_save=True)
    SealCheckpoints(tmp_path).on_step_end(None, TrainerState(global_step=step, max_steps=STEPS), control)
    assert control.should_save is saved
