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
