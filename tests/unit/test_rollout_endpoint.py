"""Many rows over an endpoint that takes few requests at once. No cluster runs."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from raw_endpoint import GOOD, completion, http, raw_endpoint

from supertiny.config import validate
from supertiny.errors import ConfigError
from supertiny.llm.config import EndpointConfig
from supertiny.llm.http import HttpLlm
from supertiny.llm.scripted import ScriptedLlm
from supertiny.rollout.config import RolloutConfig
from supertiny.rollout.teacher import TeacherActor
from supertiny.rollout_table import from_table
from supertiny.tasks.base import load_task


def test_a_model_that_cannot_be_opened_ends_the_job_with_its_own_error_and_no_row() -> None:
    def open_llm() -> HttpLlm:
        raise ConfigError("engine.num_threads is for CPUs")

    config = validate(RolloutConfig, {"task": {"path": "short_task:ShortTask", "options": {"num_prompts": 1}}}, "test")
    (prompt,) = load_task(config.task).prompts("train")
    rows = pa.table({"rollout_id": ["p/0"], "index": pa.array([0], pa.int32()), "prompt": [prompt.model_dump_json()]})

    async def go() -> None:
        actor = TeacherActor(open_llm, config)
        with pytest.raises(ConfigError, match=r"engine.num_threads is for CPUs"):
            await actor(rows)
        await actor.aclose()

    asyncio.run(go())


def asked_of(url: str, max_concurrency: int, row_timeout_seconds: float) -> dict[str, Any]:
    """An endpoint's settings, impatient ones."""
    patience = {"max_retries": 2, "first_backoff_seconds": 0.3, "timeout_seconds": row_timeout_seconds / 3}
    return {"base_url": url, "model": "m", "max_concurrency": max_concurrency, **patience}


def reasons(url: str, num_rows: int, max_concurrency: int, row_timeout_seconds: float) -> Counter[str]:
    """What became of rows of one call each that came all at once."""
    endpoint = asked_of(url, max_concurrency, row_timeout_seconds)
    config = config_for(num_rows, row_timeout_seconds, endpoint=endpoint)
    return became(HttpLlm(EndpointConfig.model_validate(endpoint)), config)


def config_for(num_rows: int, row_timeout_seconds: float, **settings: Any) -> RolloutConfig:
    """Rollouts of rows of one call each."""
    task = {"path": "short_task:ShortTask", "options": {"num_prompts": num_rows}}
    return validate(RolloutConfig, {"task": task, "layout": {"row_timeout_seconds": row_timeout_seconds}, **settings}, "test")


def became(llm: HttpLlm | ScriptedLlm, config: RolloutConfig) -> Counter[str]:
    """The reasons of all rows, which come at once."""
    prompts = load_task(config.task).prompts("train")
    columns = {"rollout_id": [f"{prompt.id}/0" for prompt in prompts], "index": pa.array([0] * len(prompts), pa.int32())}
    rows = pa.table({**columns, "prompt": [json.dumps(prompt.model_dump()) for prompt in prompts]})

    async def go() -> pa.Table:
        actor = TeacherActor(lambda: llm, config)
        try:
            return await actor(rows)
        finally:
            await actor.aclose()

    return Counter(row.verdict.reason for row in from_table(asyncio.run(go()), "test"))


def test_rows_that_wait_for_a_place_at_the_endpoint_do_not_run_out_of_time() -> None:
    def answer(*_: object) -> bytes:
        time.sleep(0.3)
        return http(200, GOOD)

    with raw_endpoint(answer) as url:
        assert reasons(url, num_rows=32, max_concurrency=2, row_timeout_seconds=2.5) == {"": 32}


def test_rows_that_wait_for_a_place_at_the_judges_endpoint_do_not_run_out_of_time() -> None:
    def answer(*_: object) -> bytes:
        time.sleep(0.3)
        return http(200, completion("Score: 5"))

    with raw_endpoint(answer) as url:
        judge = {"endpoint": asked_of(url, max_concurrency=2, row_timeout_seconds=2.5)}
        config = config_for(32, 2.5, scripted={}, filters={"judge": judge})
        assert became(ScriptedLlm(lambda _: "yes"), config) == {"": 32}


def test_a_row_that_the_endpoint_always_fails_at_is_rejected_and_the_job_goes_on() -> None:
    def answer(body: dict[str, Any], times: int) -> bytes:
        if body["messages"][0]["content"] == "say 3":
            return http(500, b"internal error")
        time.sleep(0.1)
        return http(200, GOOD)

    with raw_endpoint(answer) as url:
        assert reasons(url, num_rows=8, max_concurrency=4, row_timeout_seconds=20) == {"": 7, "failed": 1}
