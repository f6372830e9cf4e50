"""The rollout's settings."""

from __future__ import annotations

import pytest

from supertiny.config import validate
from supertiny.errors import ConfigError
from supertiny.rollout.config import RolloutConfig


def test_a_misspelt_key_is_named_with_the_right_one() -> None:
    with pytest.raises(ConfigError, match=r"group_sise: no such key; did you mean group_size\?"):
        validate(RolloutConfig, {"group_sise": 2}, "rollout.toml")


def test_another_layout_is_the_same_work_and_another_group_size_is_not() -> None:
    first = RolloutConfig()
    assert validate(RolloutConfig, {"layout": {"block_rows": 7}}, "x").settings() == first.settings()
    assert validate(RolloutConfig, {"group_size": 7}, "x").settings() != first.settings()


def test_a_teacher_beside_an_endpoint_would_have_no_effect_and_is_refused() -> None:
    endpoint = {"base_url": "http://127.0.0.1:1/v1", "model": "m"}
    assert validate(RolloutConfig, {"endpoint": endpoint}, "x").endpoint is not None
    with pytest.raises(ConfigError, match="with an endpoint, engine and teacher would have no effect"):
        validate(RolloutConfig, {"endpoint": endpoint, "teacher": "teacher", "engine": {"max_model_len": 64}}, "x")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"filters": {"judge": {"min_score": 6}}}, "filters.judge: min_score 6 is over max_score 5: nothing would be accepted"),
        ({"filters": {"judge": {"votes": 3}}}, "filters.judge: 3 votes at temperature 0 would all be the same"),
        ({"filters": {"min_pass_rate": 0.8, "max_pass_rate": 0.5}}, "filters: min_pass_rate 0.8 is over max_pass_rate 0.5"),
        ({"filters": {"max_pass_rate": 0.3}, "group_size": 2}, "max_pass_rate 0.3 with group_size 2 keeps nothing"),
    ],
)
def test_filters_that_would_keep_nothing_or_do_nothing_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(RolloutConfig, values, "x")


def test_no_filter_is_on_but_for_the_schema() -> None:
    assert {key: value for key, value in RolloutConfig().filters.model_dump().items() if value} == {"check_schema": True}
