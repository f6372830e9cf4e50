"""The rollout's settings."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

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
        ({"filters": {"likelihood": {"student": "base"}}}, "filters.likelihood: neither keep_per_prompt nor min_logprob"),
        ({"filters": {"likelihood": {"min_logprob": -1.0}}}, "filters.likelihood.student"),
        ({"filters": {"max_pass_rate": 0.3}, "group_size": 2}, "max_pass_rate 0.3 with group_size 2 keeps nothing"),
    ],
)
def test_filters_that_would_keep_nothing_or_do_nothing_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(RolloutConfig, values, "x")


def test_a_scripted_engine_beside_a_teacher_or_an_endpoint_is_refused() -> None:
    scripted = {"scripted": {"delay_seconds": 0.1}}
    assert validate(RolloutConfig, scripted, "x").scripted is not None
    with pytest.raises(ConfigError, match="with a scripted engine, teacher would have no effect"):
        validate(RolloutConfig, {**scripted, "teacher": "teacher"}, "x")
    with pytest.raises(ConfigError, match="an endpoint and a scripted engine: give the one"):
        validate(RolloutConfig, {**scripted, "endpoint": {"base_url": "http://127.0.0.1:1/v1", "model": "m"}}, "x")


def test_a_number_of_engines_is_a_pool_that_stays_as_it_is() -> None:
    assert validate(RolloutConfig, {"layout": {"num_engines": 3}}, "x").layout.num_engines == (3, 3)
    assert validate(RolloutConfig, {"layout": {"num_engines": [1, 4]}}, "x").layout.num_engines == (1, 4)


def test_a_row_has_time_for_two_tries_at_its_endpoint() -> None:
    endpoint = {"base_url": "http://127.0.0.1:1/v1", "model": "m", "timeout_seconds": 60}
    with pytest.raises(ConfigError, match=r"row_timeout_seconds 120 has no room for two tries of endpoint.timeout_seconds 60"):
        validate(RolloutConfig, {"endpoint": endpoint}, "x")
    assert validate(RolloutConfig, {"endpoint": endpoint, "layout": {"row_timeout_seconds": 121}}, "x").endpoint is not None
    with pytest.raises(ConfigError, match=r"no room for two tries of filters.judge.endpoint.timeout_seconds 60"):
        validate(RolloutConfig, {"filters": {"judge": {"endpoint": endpoint}}}, "x")


def test_rollouts_go_on_with_another_pace_patience_key_or_memory_and_not_with_another_model() -> None:
    def settings(**endpoint: object) -> dict[str, object]:
        asked = {"base_url": "http://127.0.0.1:1/v1", "model": "m", **endpoint}
        return validate(RolloutConfig, {"endpoint": asked, "filters": {"judge": {"endpoint": asked}}}, "x").settings()

    def engines(**engine: object) -> dict[str, object]:
        likelihood = {"student": "base", "keep_per_prompt": 1, "engine": engine}
        return validate(RolloutConfig, {"engine": engine, "filters": {"likelihood": likelihood}}, "x").settings()

    other = settings(max_concurrency=4, timeout_seconds=20, max_retries=9, first_backoff_seconds=2, api_key_env="OTHER_KEY")
    assert other == settings() != settings(model="other")
    assert settings() != settings(base_url="http://127.0.0.2:1/v1")
    assert engines(max_num_seqs=8, kv_cache_gib=0.5, no_progress_seconds=900, num_threads=2) == engines() != engines(dtype="float32")


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"num_engines": [4, 1]}, r"layout: num_engines \[4, 1\]: the fewest come first"),
        ({"num_engines": 0}, "layout.num_engines.0: Input should be greater than 0"),
        ({"gpus_per_engine": 1.5}, "gpus_per_engine 1.5: a fraction of one GPU, or whole ones"),
    ],
)
def test_a_layout_that_cannot_be_had_is_refused(layout: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(RolloutConfig, {"layout": layout}, "x")


@pytest.mark.parametrize(
    ("engine", "layout", "message"),
    [
        ({"tensor_parallel_size": 4}, {}, "engine has 4 workers on layout.cpus_per_engine 1; give it 4, or GPUs"),
        ({"tensor_parallel_size": 4}, {"gpus_per_engine": 2}, "engine has 4 workers and layout.gpus_per_engine is 2"),
        ({}, {"gpus_per_engine": 2}, "engine has 1 workers and layout.gpus_per_engine is 2"),
        ({}, {"gpus_per_engine": 0.5}, "engines share a GPU .* set engine.gpu_memory_utilization"),
        ({"gpu_memory_utilization": 0.6}, {"gpus_per_engine": 0.5}, "engines share a GPU"),
    ],
)
def test_an_engine_without_a_device_for_every_worker_is_refused(engine: object, layout: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(RolloutConfig, {"engine": engine, "layout": layout}, "x")


def test_a_students_engine_that_cannot_be_had_is_refused_before_the_teachers_rollouts_are_made() -> None:
    def scored_on(workers: int, **layout: object) -> RolloutConfig:
        student = {"student": "base", "keep_per_prompt": 1, "engine": {"tensor_parallel_size": workers}}
        values = {"engine": {"tensor_parallel_size": 4}, "filters": {"likelihood": student}, "layout": layout}
        return validate(RolloutConfig, values, "x")

    with pytest.raises(ConfigError, match=r"filters.likelihood.engine has 8 workers and layout.gpus_per_engine is 4"):
        scored_on(8, gpus_per_engine=4)
    with pytest.raises(ConfigError, match=r"filters.likelihood.engine has 8 workers on layout.cpus_per_engine 4"):
        scored_on(8, cpus_per_engine=4)
    assert list(scored_on(1, gpus_per_engine=4).engines()) == ["engine", "filters.likelihood.engine"]


@pytest.mark.parametrize(
    ("engine", "layout"),
    [
        ({"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, {"gpus_per_engine": 4}),
        ({"tensor_parallel_size": 2}, {"cpus_per_engine": 2}),
        ({"gpu_memory_utilization": 0.5}, {"gpus_per_engine": 0.5}),
        ({}, {"cpus_per_engine": 0.5}),
    ],
)
def test_an_engine_with_a_device_for_every_worker_is_taken(engine: object, layout: object) -> None:
    assert validate(RolloutConfig, {"engine": engine, "layout": layout}, "x").engine.num_workers in (1, 2, 4)


def test_no_filter_is_on_but_for_the_schema() -> None:
    assert {key: value for key, value in RolloutConfig().filters.model_dump().items() if value} == {"check_schema": True}


@pytest.mark.parametrize(
    "section", ["Engines of a rollout", "Rollouts over an endpoint", "Filters of a rollout", "Rollouts that the student finds likely"]
)
def test_the_settings_that_the_operations_page_shows_are_settings(section: str, checkout: Path) -> None:
    page = (checkout / "docs" / "operations.md").read_text()
    (shown,) = re.findall(rf"^## {section}\n.*?^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    validate(RolloutConfig, tomllib.loads(shown), section)
