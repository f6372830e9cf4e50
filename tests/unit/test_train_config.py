import pytest

from supertiny.config import validate
from supertiny.errors import ConfigError
from supertiny.train.config import DistillConfig, RlConfig
from supertiny.train.schedule import learning_rate


def test_a_batch_must_be_whole_micro_batches_on_every_worker() -> None:
    with pytest.raises(ConfigError, match="batch 30 is not a multiple of num_workers x micro_batch = 2 x 8 = 16"):
        validate(DistillConfig, {"batch": 30}, "test")
    assert validate(DistillConfig, {"batch": 48}, "test").batch == 48


def test_a_distillation_without_any_loss_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing would be learnt"):
        validate(DistillConfig, {"cross_entropy_weight": 0, "forward_kl_weight": 0}, "test")


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
