"""The router over fake arms: no Ray, no model, the whole HTTP face."""

import asyncio
import json
import logging
import re
from collections.abc import MutableMapping
from typing import Any

import httpx
import pytest
from tests.fake_arms import HELLO, FakeArm, Served

from supertiny.errors import ArmBusy, PromptRefused
from supertiny.llm.base import Sampling
from supertiny.serving.config import LimitsConfig


def test_each_model_is_answered_by_its_arm_and_the_header_says_so() -> None:
    client = Served(student=FakeArm())
    for model in ("student", "teacher"):
        answer = client.ask(model=model)
        assert (answer.status_code, answer.json()["model"]) == (200, model)
        assert (answer.headers["x-supertiny-arm"], answer.headers["x-supertiny-assignment"]) == (model, "requested")


def test_auto_keeps_a_session_on_one_arm_and_uses_both() -> None:
    client = Served(student=FakeArm())
    arms = {session: {client.ask({"x-session-id": str(session)}).headers["x-supertiny-arm"] for _ in range(3)} for session in range(20)}
    assert all(len(seen) == 1 for seen in arms.values())
    assert set.union(*arms.values()) == {"student", "teacher"}
    assert client.ask().headers["x-supertiny-assignment"] == "split"


def test_the_user_field_sticks_where_there_is_no_session_header() -> None:
    client = Served(student=FakeArm())
    assert all(len({client.ask(user=f"u{user}").headers["x-supertiny-arm"] for _ in range(3)}) == 1 for user in range(10))


def test_calls_come_back_as_tool_calls_with_the_usage_of_every_model_call() -> None:
    body = Served({"traffic_fraction": 0.0}).ask(model="teacher").json()
    (choice,) = body["choices"]
    assert choice["message"]["content"] == "Sure."
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "set_light", "arguments": '{"room": "kitchen"}'}
    assert choice["finish_reason"] == "tool_calls"
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"], body["usage"]["total_tokens"]) == (30, 9, 39)


def test_a_stream_ends_with_done_and_is_an_event_stream() -> None:
    answer = Served({"traffic_fraction": 0.0}).ask(model="teacher", stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-supertiny-arm"] == "teacher"
    assert answer.text.endswith("data: [DONE]\n\n")


def test_the_student_is_asked_with_the_requests_sampling() -> None:
    student = FakeArm()
    Served(student=student).ask(model="student", temperature=0.5, max_tokens=3, seed=7)
    assert student.samplings == [Sampling(temperature=0.5, max_tokens=3, seed=7)]


def test_without_a_student_auto_goes_to_the_control_and_student_is_not_found() -> None:
    client = Served({"traffic_fraction": 0.0})
    assert client.ask().headers["x-supertiny-arm"] == "teacher"
    answer = client.ask(model="student")
    assert answer.status_code == 404
    assert "none was promoted" in answer.json()["error"]["message"]
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["teacher", "auto"]


def test_an_adapter_is_a_model_that_only_its_name_asks_for() -> None:
    client = Served({"traffic_fraction": 1.0}, student=FakeArm(), **{"student:german": FakeArm(text="nein")})
    named = client.ask(model="student:german")
    assert (named.headers["x-supertiny-arm"], named.json()["choices"][0]["message"]["content"]) == ("student:german", "nein")
    assert {client.ask(user=f"u{at}").headers["x-supertiny-arm"] for at in range(20)} == {"student"}
    assert client.get("/health").json() == {"teacher": "ok", "student": "ok", "student:german": "ok"}


def test_an_unknown_model_is_not_found_and_the_message_lists_the_models() -> None:
    router = Served(student=FakeArm())
    answer = router.ask(model="gpt")
    assert (answer.status_code, router.meter.counts["refusals http_404"]) == (404, 1)
    assert answer.json()["error"]["message"] == "no model 'gpt'; there are teacher, student, auto"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("arm", "status", "message"),
    [
        (FakeArm(PromptRefused("too long")), 400, "too long"),
        (FakeArm(ArmBusy("queue of 256")), 503, "the student is overloaded; try again"),
        (FakeArm(RuntimeError("secret path /etc/shadow")), 500, "the student failed"),
        (FakeArm(seconds=5), 504, "the student did not answer in time"),
    ],
    ids=["refused", "busy", "broken", "slow"],
)
def test_a_failing_arm_gives_an_error_in_openais_shape_without_its_insides(arm: FakeArm, status: int, message: str, stream: bool) -> None:
    answer = Served(student=arm).ask(model="student", stream=stream)
    assert answer.status_code == status
    assert answer.json()["error"] == {
        "message": message,
        "type": "server_error" if status >= 500 else "invalid_request_error",
        "param": None,
        "code": status,
    }
    assert answer.headers["x-supertiny-arm"] == "student"
    assert (answer.headers.get("retry-after") == "1") == (status == 503)


@pytest.mark.parametrize(("mode", "model"), [("split", "teacher"), ("cascade", "auto")])
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_waited_in_vain_for_a_teacher_without_replicas_may_come_again(mode: str, model: str, stream: bool) -> None:
    router = Served({"mode": mode}, student=FakeArm(text="<tool_call>no"), teacher=FakeArm(seconds=5, cold=True))
    answer = router.ask(model=model, stream=stream)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
    assert answer.json()["error"]["message"] == "the teacher is starting; try again"


@pytest.mark.parametrize("cold", [None, RuntimeError("no controller")], ids=["hangs", "fails"])
def test_a_late_request_is_answered_even_where_nobody_says_whether_the_arm_is_up(cold: Exception | None) -> None:
    answer = Served(student=FakeArm(seconds=5, cold=cold)).ask(model="student")
    assert (answer.status_code, answer.json()["error"]["message"]) == (504, "the student did not answer in time")


def test_an_answer_with_what_no_json_can_hold_goes_out_as_text() -> None:
    block = '<tool_call>{"name": "set_light", "arguments": {"room": "\\ud83d"}}</tool_call>'
    router = Served(student=FakeArm(text=block))
    assert router.ask(model="student").json()["choices"][0]["message"] == {"role": "assistant", "content": block}
    assert "[DONE]" in router.ask(model="student", stream=True).text


def test_a_stream_that_breaks_ends_with_an_error_event_and_without_done() -> None:
    text = Served(student=FakeArm(break_after=1)).ask(model="student", stream=True).text
    assert '"message":"the student failed"' in text.split("\n\n")[-2] or '"message": "the student failed"' in text.split("\n\n")[-2]
    assert "[DONE]" not in text
    assert "shadow" not in text


def test_a_body_over_the_limit_is_refused_with_413() -> None:
    answer = Served({"traffic_fraction": 0.0}).ask(messages=[{"role": "user", "content": "x" * 5000}])
    assert answer.status_code == 413
    assert answer.json()["error"]["message"] == "the body is over 4096 bytes"


def test_a_wrong_field_is_a_400_that_names_it() -> None:
    answer = Served({"traffic_fraction": 0.0}).ask(prompt_embeds="x")
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "prompt_embeds: no such field here"


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/nothing", 404), ("GET", "/v1/chat/completions", 405)])
def test_an_unknown_route_has_openais_error_shape_too(method: str, path: str, status: int) -> None:
    answer = (served := Served({"traffic_fraction": 0.0})).run(served.client.request(method, path))
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_health_draws_a_token_from_every_arm_and_fails_when_one_cannot() -> None:
    student = FakeArm()
    good = Served(student=student).get("/health")
    assert (good.status_code, good.json()) == (200, {"teacher": "ok", "student": "ok"})
    assert student.samplings == [Sampling(max_tokens=1)]
    bad = Served(student=FakeArm(RuntimeError("dead"))).get("/health")
    assert (bad.status_code, bad.json()) == (503, {"teacher": "ok", "student": "failed"})


def test_a_router_is_ready_once_every_arm_has_drawn_a_token_and_then_asks_no_more() -> None:
    student = FakeArm(RuntimeError("still loading"))
    client = Served(student=student)
    early = client.get("/ready")
    assert (early.status_code, early.json()["waiting_for"]) == (503, ["student"])
    student.error = None
    assert client.get("/ready").status_code == 200
    student.error = RuntimeError("overloaded for a moment")
    assert client.get("/ready").status_code == 200


def test_many_who_ask_whether_it_is_ready_share_one_token() -> None:
    student = FakeArm(seconds=0.05)
    router = Served(student=student)

    async def many() -> list[httpx.Response]:
        return await asyncio.gather(*(router.client.get("/ready") for _ in range(20)))

    assert {answer.status_code for answer in router.run(many())} == {200}
    assert len(student.samplings) == 1


def test_a_header_of_serves_that_would_keep_a_left_request_running_is_refused() -> None:
    answer = Served({"traffic_fraction": 0.0}).ask({"x-request-disconnect-disabled": "?1"})
    assert answer.status_code == 400


def test_a_router_with_its_hands_full_refuses_and_says_when_to_try_again() -> None:
    router = Served({"traffic_fraction": 0.0})
    router.meter.in_flight["teacher"] = router.answers.limits.in_flight
    answer = router.ask()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert router.meter.counts["refusals router_full"] == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("arm", [FakeArm(), FakeArm(RuntimeError("dead")), FakeArm(seconds=5)], ids=["answers", "broken", "slow"])
def test_however_a_request_ends_nothing_stays_in_flight_and_it_is_counted_once(arm: FakeArm, stream: bool) -> None:
    router = Served(student=arm)
    status = router.ask(model="student", stream=stream).status_code
    assert router.meter.in_flight.total() == 0
    assert router.meter.counts[f"requests student requested {status}"] == 1


def test_a_client_that_leaves_cancels_its_generation() -> None:
    arm = FakeArm(seconds=5)
    router = Served(student=arm, limits=LimitsConfig(seconds=60))

    async def leave() -> None:
        body = {"model": "student", "messages": HELLO}
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await router.client.post("/v1/chat/completions", json=body)

    router.run(leave())
    assert (arm.cancelled, router.meter.in_flight.total(), router.meter.counts["requests student requested 499"]) == (1, 0, 1)


@pytest.mark.parametrize(("leaves", "status"), [(True, 499), (False, 408)])
def test_a_body_that_does_not_come_whole_is_a_refusal_and_no_failure(leaves: bool, status: int) -> None:
    router = Served({"traffic_fraction": 0.0})

    async def receive() -> dict[str, object]:
        if not leaves:
            await asyncio.sleep(5)
        return {"type": "http.disconnect"}

    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"", "headers": []}
    router.run(router.app(scope, receive, send))
    assert sent[0]["status"] == status
    assert router.meter.counts[f"refusals http_{status}"] == 1


def test_the_openapi_document_holds_the_bodies_and_every_reference_leads_somewhere() -> None:
    document = Served({"traffic_fraction": 0.0}).get("/openapi.json")
    schemas = document.json()["components"]["schemas"]
    assert schemas["ChatRequest"]["required"] == ["model", "messages"]
    assert {name for name in re.findall(r"#/components/schemas/(\w+)", document.text) if name not in schemas} == set()


def test_conversations_are_logged_where_it_is_asked_for_and_nowhere_else(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "supertiny")
    Served({"traffic_fraction": 0.0}).ask(messages=[{"role": "user", "content": "a private matter"}])
    assert "private" not in caplog.text
    Served({"traffic_fraction": 0.0, "log_prompts": True}).ask(messages=[{"role": "user", "content": "a private matter"}])
    (line,) = [record.getMessage() for record in caplog.records if "private" in record.getMessage()]
    written = json.loads(line.removeprefix("conversation "))
    assert (written["messages"][0]["content"], written["x-supertiny-arm"]) == ("a private matter", "teacher")
    assert "set_light" in written["answer"]
