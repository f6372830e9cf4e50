from typing import Any

import pytest

from supertiny.config import validate
from supertiny.errors import ConfigError
from supertiny.train.config import DistillConfig, RlConfig
from supertiny.train.draw import draws_with_vllm
from supertiny.train.judge_reward import JudgeReward
from supertiny.train.loss_config import WHOLE_TEACHER, LossWeights
from supertiny.train.losses import TERMS
from supertiny.train.reward_config import RewardWeights
from supertiny.train.rewards import REWARDS
from supertiny.train.schedule import learning_rate


def test_a_batch_must_be_whole_micro_batches_on_every_worker() -> None:
    with pytest.raises(ConfigError, match="batch 30 is not a multiple of num_workers x micro_batch = 2 x 8 = 16"):
        validate(DistillConfig, {"batch": 30}, "test")
    assert validate(DistillConfig, {"batch": 48}, "test").batch == 48


def test_a_distillation_without_any_loss_is_refused() -> None:
    with pytest.raises(ConfigError, match="losses: no term has a weight: nothing would be learnt"):
        validate(DistillConfig, {"losses": {}}, "test")


def test_the_loss_is_exactly_the_terms_that_are_named() -> None:
    assert validate(DistillConfig, {}, "test").losses.weights() == {"cross_entropy": 1, "forward_kl": 1}
    named = validate(DistillConfig, {"losses": {"forward_kl": 2, "tail_penalty": 10}}, "test")
    assert named.losses.weights() == {"forward_kl": 2, "tail_penalty": 10}


def test_an_unknown_term_is_refused_with_the_names_of_those_there_are() -> None:
    with pytest.raises(
        ConfigError, match="no such term: forwad_kl; the terms are cross_entropy, forward_kl, tail_penalty, reverse_kl, jsd"
    ):
        validate(DistillConfig, {"losses": {"forwad_kl": 1}}, "test")


@pytest.mark.parametrize("weight", [0, -1])
def test_a_term_has_a_positive_weight_or_is_left_out(weight: float) -> None:
    with pytest.raises(ConfigError, match=r"losses\.tail_penalty: Input should be greater than 0"):
        validate(DistillConfig, {"losses": {"cross_entropy": 1, "tail_penalty": weight}}, "test")


@pytest.mark.parametrize("name", WHOLE_TEACHER)
def test_a_term_over_the_whole_vocabulary_is_refused_where_rollouts_keep_the_top_k(name: str) -> None:
    with pytest.raises(
        ConfigError, match=f"losses.{name} needs the teacher's distribution over the whole vocabulary.*use losses.forward_kl"
    ):
        validate(DistillConfig, {"losses": {"cross_entropy": 1, name: 1}}, "test")


def test_every_term_of_the_config_has_its_function() -> None:
    assert [*TERMS, *WHOLE_TEACHER] == list(LossWeights.model_fields)


def test_a_batch_of_completions_must_be_whole_groups() -> None:
    with pytest.raises(ConfigError, match="batch 32 is not a multiple of group_size 6"):
        validate(RlConfig, {"group_size": 6}, "test")


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (DistillConfig, {"learning_rate": 0}),
        (DistillConfig, {"zero_stage": 4}),
        (DistillConfig, {"epochs": -1}),
        (DistillConfig, {"warmup_fraction": 1}),
        (DistillConfig, {"min_divergence": 0}),
        (RlConfig, {"group_size": 1}),
        (RlConfig, {"temperature": 0}),
        (RlConfig, {"kl_coef": -0.1}),
        (DistillConfig, {"replay": {"rollouts": []}}),
        (DistillConfig, {"replay": {"rollouts": ["old"], "fraction": 1}}),
        (RlConfig, {"validation": {"fraction": 0.9}}),
        (RlConfig, {"lora": {"rank": 0}}),
    ],
)
def test_values_out_of_bounds_are_named(config: type, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        validate(config, values, "test")


def test_the_learning_rate_rises_straight_and_falls_along_a_cosine() -> None:
    config = validate(DistillConfig, {"learning_rate": 1.0, "warmup_fraction": 0.2, "final_learning_rate_fraction": 0.1}, "test")
    rates = [learning_rate(step, 10, config) for step in range(1, 11)]
    assert rates[:2] == [0.5, 1.0]
    assert rates[5] == pytest.approx(0.55)  # half way down
    assert rates[-1] == pytest.approx(0.1)
    assert rates[2:] == sorted(rates[2:], reverse=True)


def test_on_policy_distillation_minimises_reverse_kl_unless_told_otherwise() -> None:
    config = validate(DistillConfig, {"mode": "on_policy"}, "test")
    assert config.losses.weights() == {"reverse_kl": 1}
    assert config.on_policy is not None
    jsd = {"mode": "on_policy", "losses": {"jsd": 1}, "on_policy": {"jsd_beta": 0.3}}
    assert validate(DistillConfig, jsd, "test").losses.weights() == {"jsd": 1}


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"losses": {"cross_entropy": 1}}, "on-policy there is one of forward_kl, reverse_kl, jsd"),
        ({"losses": {"reverse_kl": 2}}, "with weight 1"),
        ({"losses": {"reverse_kl": 1, "jsd": 1}}, "there is one of"),
        ({"losses": {"jsd": 1}}, "jsd_beta belongs to losses.jsd: give both or neither"),
        ({"on_policy": {"jsd_beta": 0.5}}, "jsd_beta belongs to losses.jsd"),
        ({"line_tokens": 128}, "line_tokens without effect"),
        ({"min_divergence": 0.1}, "min_divergence without effect"),
        ({"max_tokens": 90}, "leaves no room for a prompt"),
        ({"on_policy": {"generation": "vllm"}}, "generation vllm takes device gpu"),
    ],
)
def test_what_on_policy_distillation_cannot_use_is_refused(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        validate(DistillConfig, {"mode": "on_policy", **values}, "test")


def test_settings_of_another_mode_are_refused() -> None:
    with pytest.raises(ConfigError, match='on_policy without effect: set mode = "on_policy"'):
        validate(DistillConfig, {"on_policy": {}}, "test")
    with pytest.raises(ConfigError, match="off-policy distillation runs in DeepSpeed"):
        validate(DistillConfig, {"zero_stage": None}, "test")


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"generation": "vllm"}, "generation vllm takes device gpu"),
        ({"vllm_memory_fraction": 0.5}, "vllm_memory_fraction without effect"),
        ({"offload": True, "zero_stage": 1}, "offload without effect"),
        ({"offload": True, "device": "gpu"}, "offload without effect"),
        ({"zero_stage": 3, "validation": {}}, "zero_stage 3 leaves no worker the whole weights"),
        ({"zero_stage": 3, "lora": {}}, "zero_stage 3 leaves no worker the whole weights"),
        ({"rewards": {"length": 1}}, "rewards: no reward says what is right"),
        ({"rewards": {}}, "rewards: no reward says what is right"),
        ({"rewards": {"argument": 1}}, "did you mean arguments"),
    ],
)
def test_a_setting_without_effect_or_sense_is_refused(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        validate(RlConfig, values, "test")


def test_a_gpu_takes_vllm_and_offloading() -> None:
    values = {"device": "gpu", "generation": "vllm", "zero_stage": 2, "offload": True}
    assert validate(RlConfig, values, "test").generation == "vllm"


def test_the_rewards_are_exactly_those_named_and_their_weights_add_up_to_one() -> None:
    assert validate(RlConfig, {}, "test").rewards.weights() == {"verifier": 1}
    assert validate(RlConfig, {"rewards": {"calls": 1, "arguments": 3}}, "test").rewards.weights() == {"calls": 0.25, "arguments": 0.75}


def test_every_reward_of_the_config_has_its_function() -> None:
    assert [*REWARDS, JudgeReward.NAME] == list(RewardWeights.model_fields)


def test_a_judge_comes_with_its_weight_and_its_price_changes_no_result() -> None:
    endpoint = {"base_url": "http://127.0.0.1:1/v1", "model": "large"}
    priced = {**endpoint, "price": {"prompt_usd": 1, "completion_usd": 2}}
    both = [{"rewards": {"judge": 1}, "judge": {"endpoint": each}} for each in (endpoint, priced)]
    plain, costly = (validate(RlConfig, values, "test") for values in both)
    assert plain.settings() == costly.settings()
    for half in ({"rewards": {"judge": 1}}, {"judge": {"endpoint": endpoint}}):
        with pytest.raises(ConfigError, match="belong together"):
            validate(RlConfig, half, "test")


@pytest.mark.parametrize(
    "conduct",
    [{"trackers": []}, {"max_failures": 7, "spot": True}, {"stall_seconds": 900}, {"checkpoint_every_steps": 5}, {"log_every_steps": 1}],
)
def test_how_a_training_is_run_and_watched_is_no_part_of_its_key(conduct: dict[str, Any]) -> None:
    for config in (RlConfig, DistillConfig):
        assert validate(config, conduct, "test").settings() == validate(config, {}, "test").settings()


def test_what_draws_with_vllm_is_known_in_either_way_to_draw() -> None:
    vllm = {"generation": "vllm"}
    assert draws_with_vllm(validate(RlConfig, {"device": "gpu", **vllm}, "test"))
    assert draws_with_vllm(validate(DistillConfig, {"device": "gpu", "mode": "on_policy", "on_policy": vllm}, "test"))
    assert not draws_with_vllm(validate(RlConfig, {}, "test"))
    assert not draws_with_vllm(validate(DistillConfig, {}, "test"))


def test_a_range_of_workers_must_divide_the_batch_at_every_number() -> None:
    values = {"num_workers": 4, "min_workers": 1, "batch": 96}
    assert validate(DistillConfig, values, "test").min_workers == 1
    with pytest.raises(ConfigError, match="min_workers 1: batch 32 is not a multiple of 3 x micro_batch 8"):
        validate(DistillConfig, {**values, "batch": 32}, "test")
    with pytest.raises(ConfigError, match="min_workers 2 without effect"):
        validate(DistillConfig, {"min_workers": 2}, "test")
    with pytest.raises(ConfigError, match="leave zero_stage out"):
        validate(RlConfig, {"min_workers": 1, "zero_stage": 1}, "test")
    assert validate(DistillConfig, {"mode": "on_policy", "min_workers": 1}, "test").zero_stage is None
