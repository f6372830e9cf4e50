"""GRPO in TRL's words, and the groups that teach nothing."""

from pathlib import Path

import torch
from tiny_rollouts import assistant_tokenizer

from supertiny.config import validate
from supertiny.tasks.assistant.task import AssistantTask
from supertiny.train.config import RlConfig
from supertiny.train.grpo import rewarder, trainer_settings, unequal_groups


def test_a_group_counts_where_its_rewards_differ() -> None:
    advantages = torch.tensor([0.5, -0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, -1.0])  # groups of 3: differing, equal, differing
    assert unequal_groups(advantages, 3).tolist() == [True] * 3 + [False] * 3 + [True] * 3


def test_a_reward_that_is_no_number_is_not_left_out_in_silence() -> None:
    assert unequal_groups(torch.tensor([float("nan")] * 3 + [0.0] * 3), 3).tolist() == [True] * 3 + [False] * 3


def test_rounding_in_the_mean_does_not_make_equal_rewards_differ() -> None:
    rewards = torch.tensor([0.1, 0.1, 0.1])
    assert not unequal_groups(rewards - rewards.mean() + 3e-8, 3).any()


def test_the_trainer_gets_our_settings_in_its_words(tmp_path: Path) -> None:
    values = {"rewards": {"verifier": 3, "length": 1}, "kl_coef": 0.05, "batch": 64, "micro_batch": 16, "group_size": 4, "steps": 40}
    theirs = trainer_settings(validate(RlConfig, values, "test"), 2, tmp_path)
    assert theirs.reward_weights == [0.75, 0.25]
    assert (theirs.beta, theirs.num_generations, theirs.max_steps, theirs.gradient_accumulation_steps) == (0.05, 4, 40, 2)
    assert (theirs.scale_rewards, theirs.use_vllm) == ("none", False)


def test_fewer_workers_take_more_micro_batches_a_step(tmp_path: Path) -> None:
    config = validate(RlConfig, {"num_workers": 2, "min_workers": 1, "batch": 64, "micro_batch": 16}, "test")
    assert trainer_settings(config, 1, tmp_path).gradient_accumulation_steps == 4


def test_every_reward_is_named_as_in_the_config_a_judges_too() -> None:
    values = {"rewards": {"verifier": 3, "judge": 1}, "judge": {"endpoint": {"base_url": "http://127.0.0.1:1/v1", "model": "large"}}}
    config = validate(RlConfig, values, "test")
    given = [rewarder(name, config, AssistantTask(), [], assistant_tokenizer()).__name__ for name in config.rewards.weights()]
    assert given == ["verifier", "judge"]
