"""The teacher pipeline over somebody else's endpoint, on real sockets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.unit.raw_endpoint import BROKEN, completion, http, raw_endpoint

from supertiny.config import TaskConfig
from supertiny.errors import ArmBusy
from supertiny.llm.config import EndpointConfig
from supertiny.records import Call, Completion
from supertiny.serving.arms import TeacherPipeline
from supertiny.serving.call import CallContext
from supertiny.serving.stream import Refused
from supertiny.tasks.calls import render

CALL = render([Call(name="convert", arguments={"value": 2, "source": "mile", "target": "foot"})])
ASKED: list[Any] = [{"role": "user", "content": "how many feet are 2 miles?"}]


def answered(base_url: str, seconds: float = 10) -> Completion | Refused:
    """What the pipeline of one call gives."""
    endpoint = EndpointConfig(base_url=base_url, model="large", max_retries=1, first_backoff_seconds=0.01)
    pipeline = TeacherPipeline(TaskConfig(path="examples.single_call:ConvertTask"), endpoint)
    return asyncio.run(pipeline.complete(ASKED, CallContext(seconds=seconds)))


def test_the_pipeline_asks_the_endpoint_for_its_model_with_the_tasks_tools() -> None:
    bodies: list[dict[str, Any]] = []

    def reply(body: dict[str, Any], times: int) -> bytes:
        bodies.append(body)
        return http(200, completion(CALL))

    with raw_endpoint(reply) as url:
        answer = answered(url)
    assert isinstance(answer, Completion)
    assert (answer.text, answer.usage.prompt_tokens) == (CALL, 7)
    assert (bodies[0]["model"], bodies[0]["messages"], bodies[0]["tools"][0]["function"]["name"]) == ("large", ASKED, "convert")


def test_a_prompt_that_the_endpoint_refuses_is_refused_and_its_address_and_words_stay_inside() -> None:
    with raw_endpoint(lambda body, times: http(400, b'{"error": {"message": "too long for node-7"}}')) as url:
        assert answered(url) == Refused(reason="the teacher does not take this conversation")


@pytest.mark.parametrize("broken", ["nothing", "429", "500"])
def test_an_endpoint_that_stays_away_makes_the_arm_busy_so_that_clients_come_again(broken: str) -> None:
    with raw_endpoint(lambda body, times: BROKEN[broken]) as url, pytest.raises(ArmBusy, match="endpoint failed at every try"):
        answered(url)


def test_an_endpoint_that_hangs_is_given_up_at_the_deadline() -> None:
    async def silent() -> None:
        server = await asyncio.start_server(lambda reader, writer: asyncio.sleep(60), "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            await asyncio.to_thread(answered, f"http://127.0.0.1:{port}/v1", 0.2)

    with pytest.raises(TimeoutError):
        asyncio.run(silent())
