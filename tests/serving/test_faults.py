"""What clients see while parts of a served application die, are replaced, or have too much to do. The engines are scripted."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from ray import serve
from tests.serving.load import BODY, Sent, burst, clients, kill, p99, proxy_pids, replica_pids, wait_for
from tests.unit.raw_endpoint import BROKEN, completion, http, raw_endpoint

from supertiny.llm.config import EndpointConfig, ScriptedConfig
from supertiny.serving.app import build_app
from supertiny.serving.config import ArmConfig, LimitsConfig, ServeConfig
from supertiny.serving.port import free_port
from supertiny.serving.run import APPLICATION, served

pytestmark = [pytest.mark.ray, pytest.mark.slow]
CLIENTS = 12
ANSWER = "one two three four five"
TEACHER = ArmConfig(scripted=ScriptedConfig(answer="teacher"))


def config(
    replicas: int = 3,
    delay_seconds: float = 0.2,
    ongoing: int = 64,
    queued: int = 64,
    queue_seconds: float | None = None,
    answer: str = ANSWER,
) -> ServeConfig:
    """A student of so many scripted replicas."""
    student = ArmConfig(
        min_replicas=replicas,
        max_replicas=replicas,
        target_ongoing_requests=ongoing,
        max_ongoing_requests=ongoing,
        max_queued_requests=queued,
        queue_seconds=queue_seconds,
        scripted=ScriptedConfig(answer=answer, delay_seconds=delay_seconds, max_num_seqs=ongoing),
    )
    return ServeConfig(student_arm=student, teacher_arm=TEACHER, router_replicas=2)


@contextmanager
def application(settings: ServeConfig) -> Iterator[str]:
    """Its URL."""
    with served(settings, port=free_port()) as url:
        yield url


@pytest.fixture(scope="module")
def url(local_ray: None) -> Iterator[str]:
    """Three replicas, two routers."""
    with application(config()) as address:
        yield address


def failed(sent: list[Sent], *, begun: bool) -> list[Sent]:
    """Requests without a whole answer that had, or had not, begun to answer."""
    return [each for each in sent if not each.whole and each.begun == begun]


def after(sent: list[Sent], moment: float) -> list[Sent]:
    """Those sent later."""
    return [each for each in sent if each.at > moment]


def test_a_killed_replica_costs_no_request_that_was_not_yet_answering(url: str) -> None:
    with clients(url, CLIENTS, stream_every=3) as sent:
        time.sleep(2)
        kill(replica_pids("student-engine")[0])
        recovery = wait_for("the replica's successor", lambda: len(replica_pids("student-engine")) == 3)
        time.sleep(2)
    print(f"replica killed: {len(sent)} requests, {len(failed(sent, begun=True))} streams cut, back in {recovery:.1f} s")
    assert len(sent) > 5 * CLIENTS
    assert failed(sent, begun=False) == []


def test_a_killed_router_is_replaced_and_the_other_one_answers(url: str) -> None:
    with clients(url, CLIENTS) as sent:
        time.sleep(1)
        kill(replica_pids("router")[0])
        recovery = wait_for("the router's successor", lambda: len(replica_pids("router")) == 2)
        time.sleep(3)
        moment = time.monotonic()
        time.sleep(2)
    lost = [each for each in sent if not each.whole]
    print(f"router killed: {len(sent)} requests, {len(lost)} lost, back in {recovery:.1f} s")
    assert len(lost) <= CLIENTS  # at most what that router had in hand
    assert [each for each in after(sent, moment) if not each.whole] == []


def test_a_killed_proxy_comes_back(url: str) -> None:
    with clients(url, CLIENTS) as sent:
        time.sleep(1)
        killed = time.monotonic()
        kill(proxy_pids()[0])
        wait_for("an answer through the next proxy", lambda: any(each.whole for each in after(sent, killed)))
        recovery = time.monotonic() - killed
        moment = time.monotonic()
        time.sleep(2)
    print(f"proxy killed: {len(sent)} requests, {sum(not each.whole for each in sent)} lost, back in {recovery:.1f} s")
    assert [each for each in after(sent, moment + 0.5) if not each.whole] == []


def test_clients_that_leave_all_at_once_leave_nothing_running(url: str) -> None:
    delay_seconds = 30.0
    update(config(delay_seconds=delay_seconds))
    running = serve.get_deployment_handle("student-engine", APPLICATION).running

    async def storm() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=delay_seconds, limits=httpx.Limits(max_connections=None)) as client:
            posts = [client.post("/v1/chat/completions", json={**BODY, "stream": index % 2 == 0}) for index in range(60)]
            tasks = [asyncio.create_task(post) for post in posts]
            await asyncio.sleep(3)
            assert sum([await running.remote() for _ in range(10)]) > 0
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(storm())
    seconds = wait_for("the engines to be idle", lambda: all(running.remote().result() == 0 for _ in range(12)))
    print(f"60 clients left: engines idle after {seconds:.2f} s of {delay_seconds:g} s of work")
    assert seconds < delay_seconds / 10


def test_a_rolling_update_of_the_model_loses_no_request(url: str) -> None:
    update(config())
    with clients(url, CLIENTS, stream_every=3) as sent:
        time.sleep(1)
        update(config(answer="six seven"))
        time.sleep(1)
        answer = httpx.post(f"{url}/v1/chat/completions", json=BODY, timeout=60).json()
    print(f"rolling update: {len(sent)} requests, {sum(not each.whole for each in sent)} lost")
    assert answer["choices"][0]["message"]["content"] == "six seven"
    assert [each for each in sent if not each.whole] == []


def test_an_overload_is_refused_with_retry_after_and_the_admitted_are_not_slow(url: str) -> None:
    places, delay_seconds = 8, 1.0  # slow engines, so that it is they who are overloaded and not this machine
    update(config(replicas=1, delay_seconds=delay_seconds, ongoing=places, queued=2, queue_seconds=delay_seconds / 2))
    capacity = places / delay_seconds
    with clients(url, places) as calm:
        time.sleep(8)
    flood = burst(url, 5 * capacity, 10)
    refused = [each for each in flood if each.status in (429, 503)]
    print(f"5x overload: {len(flood)} sent, {len(refused)} refused, p99 {p99(calm):.2f} s -> {p99(flood):.2f} s")
    assert len(refused) > len(flood) / 2
    assert all(each.retry_after for each in refused)
    assert {each.status for each in flood} <= {200, 429, 503}
    assert p99(flood) < 2 * p99(calm)


def test_a_teacher_without_replicas_asks_to_come_again_and_then_answers(url: str) -> None:
    cold = TEACHER.model_copy(update={"min_replicas": 0, "downscale_seconds": 0.0, "upscale_seconds": 0.5})
    update(config(replicas=1).model_copy(update={"teacher_arm": cold, "limits": LimitsConfig(seconds=0.5)}))
    wait_for("the teacher's replicas to leave", lambda: replica_pids("teacher-engine") == [])
    answers: list[httpx.Response] = []
    wait_for("an answer", lambda: answers.append(asked_teacher(url)) or answers[-1].status_code == 200)
    print(f"a cold teacher: {[answer.status_code for answer in answers]}")
    assert (answers[0].status_code, answers[0].headers["retry-after"]) == (503, "10")
    assert {answer.status_code for answer in answers[:-1]} <= {503, 504}  # it may have started just before a deadline
    assert answers[-1].json()["choices"][0]["message"]["content"] == "teacher"
    assert httpx.get(f"{url}/health", timeout=60).json() == {"student": "ok"}


def test_the_teacher_may_be_an_endpoint_and_its_absence_asks_to_come_again(url: str) -> None:
    gone = threading.Event()

    def reply(body: dict[str, Any], times: int) -> bytes:
        return BROKEN["nothing"] if gone.is_set() else http(200, completion("from elsewhere"))

    with raw_endpoint(reply) as base_url:
        endpoint = EndpointConfig(base_url=base_url, model="large", max_retries=1, first_backoff_seconds=0.1)
        update(config(replicas=1).model_copy(update={"teacher_endpoint": endpoint}))
        answer = asked_teacher(url)
        gone.set()
        refused = asked_teacher(url)
    assert (answer.status_code, answer.json()["choices"][0]["message"]["content"]) == (200, "from elsewhere")
    assert answer.json()["usage"]["prompt_tokens"] > 7  # of all calls of the pipeline
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert replica_pids("teacher-engine") == []


def asked_teacher(url: str) -> httpx.Response:
    """The answer to one request for `teacher`."""
    return httpx.post(f"{url}/v1/chat/completions", json={**BODY, "model": "teacher"}, timeout=60)


def update(settings: ServeConfig) -> None:
    """Deploy other settings over the running application, and wait until they hold."""
    serve.run_many([serve.RunTarget(build_app(settings), name=APPLICATION, logging_config={"enable_access_log": False})])
