import pytest

from supertiny.config import validate
from supertiny.errors import ConfigError
from supertiny.train.config import WHOLE_TEACHER, DistillConfig, LossWeights, RlConfig
from supertiny.train.losses import TERMS
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
    ],
)
def test_values_out_of_bounds_are_named(config: type, values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        validate(config, values, "test")


def test_the_learning_rate_rises_straight_and_falls_along_a_cosine() -> None:
    config = validate(DistillConfig, {"learning_rate": 1.0, "warmup_fraction": 0.2, "final_learning_rate_fraction": 0.1}, "test")
    rates = [learning_rate(step, 10, config) for step in range(1, 11)]
    assert rates[:2] == [0.5, 1.0]
    assert rates[5] == pytest.approx(0.55)  # half way down
    assert rates[-1] == pytest.approx(0.1)
    assert rates[2:] == sorted(rates[2:], reverse=True)
