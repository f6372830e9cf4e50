"""What each reinforcement learning worker runs: TRL's GRPO trainer with our rewards."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from datasets import Dataset
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer  # type: ignore[attr-defined] # they are loaded lazily

from supertiny.records import Prompt
from supertiny.tasks.base import Task, load_task
from supertiny.train.config import RlConfig
from supertiny.train.judge_reward import JudgeReward
from supertiny.train.lora import lora_config
from supertiny.train.plan import DrawPlan
from supertiny.train.prompts import read_prompts
from supertiny.train.rewards import TrlReward
from supertiny.train.schedule import learning_rate
from supertiny.train.trainers import DrawTrainer, common_settings, draw_settings, run_trainer

METRICS = {"reward": "reward", "reward_std": "reward_std", "kl": "kl", "frac_reward_zero_std": "equal_groups_fraction"}
"""TRL's names and ours; the rewards by themselves come with it."""
SAME = 1e-6
"""Rewards that differ by less are equal."""


def grpo_worker(plan: DrawPlan) -> dict[str, float]:
    """The last step's metrics; worker 0 leaves the trained student in `plan.output`. Raises what `run_trainer` raises."""
    config = plan.config
    assert isinstance(config, RlConfig)
    names = {f"rewards/{name}/mean": f"reward_{name}" for name in config.rewards.weights()}
    rows, task = read_prompts(plan.prompts), load_task(config.task)

    def build(model: Any, tokenizer: Any, callbacks: list[Any], steps_done: int) -> Grpo:
        prompts = [row.prompt for row in rows]
        return Grpo(
            model=model,
            reward_funcs=[rewarder(name, config, task, prompts, tokenizer) for name in config.rewards.weights()],
            args=trainer_settings(config, dist.get_world_size(), plan.checkpoints),
            train_dataset=Dataset.from_list([{"prompt": row.text, "prompt_id": row.prompt.id} for row in rows]),
            processing_class=tokenizer,
            peft_config=lora_config(config.lora) if config.lora else None,
            callbacks=callbacks,
            group_size=config.group_size,
            drop_equal_groups=config.drop_equal_groups,
            steps_done=steps_done,
            rate=partial(learning_rate, num_steps=config.steps, config=config),
        )

    return run_trainer(plan, {**METRICS, **names}, build)


def rewarder(name: str, config: RlConfig, task: Task, prompts: Sequence[Prompt], tokenizer: Any) -> TrlReward | JudgeReward:
    """One of the rewards, by its name in the config."""
    if name == JudgeReward.NAME:
        assert config.judge is not None
        return JudgeReward(prompts, task.tools, tokenizer, config.judge)
    return TrlReward(name, task, prompts, tokenizer, config.max_completion_tokens)


def trainer_settings(config: RlConfig, num_workers: int, output: Path) -> GRPOConfig:
    """TRL's words for our settings."""
    return GRPOConfig(
        **common_settings(config, config.steps, num_workers, output),
        **draw_settings(config),
        num_generations=config.group_size,
        reward_weights=list(config.rewards.weights().values()),
        beta=config.kl_coef,
        scale_rewards="none",  # divided by a group's deviation, easy and hard prompts would weigh more (Dr. GRPO, arXiv 2503.20783)
    )


class Grpo(DrawTrainer, GRPOTrainer):
    """TRL's trainer, without the groups that teach nothing.

    TRL 1.16 counts them (`frac_reward_zero_std`) and keeps them in: their advantages are 0, but their tokens are among those that the loss
    is a mean over, and they pull the student to the reference. Leaving them out is DAPO's dynamic sampling (arXiv 2503.14476) without
    drawing others in their place. They are left out as what a tool said would be: of the loss, and not of the attention, without which
    their log-probabilities would be of no context.
    """

    def __init__(self, *, group_size: int, drop_equal_groups: bool, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._group_size, self._drop_equal_groups = group_size, drop_equal_groups

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """As TRL's; a completion that is dropped has no token in the loss."""
        batch = super()._generate_and_score_completions(inputs)
        if self._drop_equal_groups:
            own = slice(*(len(inputs) * place for place in (self.accelerator.process_index, self.accelerator.process_index + 1)))
            kept_B = unequal_groups(self.accelerator.gather(batch["advantages"]), self._group_size)[own]
            batch["tool_mask"] = kept_B[:, None].expand_as(batch["completion_mask"]).int()
            batch["num_items_in_batch"] = self.accelerator.gather((batch["completion_mask"] * batch["tool_mask"]).sum()).sum()
        return batch


def unequal_groups(advantages_N: Tensor, group_size: int) -> Tensor:
    """Where a completion's group has different rewards, or one that is no number: bool (N,).

    Args:
        advantages_N: rewards minus their group's mean; N is a multiple of `group_size`, and groups are in one piece.
    """
    differs_B = ~(advantages_N.view(-1, group_size).abs() <= SAME).all(-1)
    return torch.repeat_interleave(differs_B, group_size)
