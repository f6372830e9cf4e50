"""The served application over real HTTP: real engines, real pipeline, real clients."""

from __future__ import annotations

import functools
import itertools
import json
import operator
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import ray
import schemathesis
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from tests.hostile import ROUTES
from tests.openapi import send_all

from supertiny.cost import MachinePrice
from supertiny.errors import ConfigError, PlanTooBig
from supertiny.llm.chat import prompt_token_ids
from supertiny.serving.config import ServeConfig
from supertiny.serving.run import served
from supertiny.serving.stream import answer_text
from supertiny.serving.traffic import measure
from supertiny.tasks.base import load_task

pytestmark = [pytest.mark.ray, pytest.mark.slow]  # about a minute to deploy, for all of them together
LIGHT = [{"role": "user", "content": "turn on the kitchen light"}]
ALIVE = {"student": "ok", "teacher": "ok"}


def post(url: str, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    """The answer to one chat request."""
    body = {"model": "auto", "messages": LIGHT, **fields}
    return httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60)


def curl(url: str, body: dict[str, Any]) -> str:
    """What the command line prints."""
    command = ["curl", "-sS", "--fail", "-N", f"{url}/v1/chat/completions", "-H", "content-type: application/json", "-d", json.dumps(body)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.parametrize("model", ["student", "teacher", "auto"])
def test_curl_gets_an_answer_from_each_model(application: str, model: str, serve_config: ServeConfig) -> None:
    body = json.loads(curl(application, {"model": model, "messages": LIGHT, "tools": load_task(serve_config.task).tools}))
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["finish_reason"] in {"stop", "tool_calls", "length"}
    assert body["model"] == model or model == "auto"


@pytest.mark.parametrize("model", ["student", "teacher", "auto"])
def test_curl_gets_a_stream_with_usage_from_each_model(application: str, model: str) -> None:
    text = curl(application, {"model": model, "messages": LIGHT, "stream": True, "stream_options": {"include_usage": True}})
    *events, done = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert done == "[DONE]"
    assert json.loads(events[0])["choices"][0]["delta"]["role"] == "assistant"
    assert json.loads(events[-1])["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize("model", ["student", "teacher", "auto"])
def test_the_openai_client_gets_the_same_answer_streamed_and_whole(application: str, model: str, serve_config: ServeConfig) -> None:
    tools: Any = load_task(serve_config.task).tools
    messages: Any = LIGHT
    with openai.OpenAI(base_url=f"{application}/v1", api_key="none") as client:
        whole = client.chat.completions.create(model=model, messages=messages, tools=tools, user="ada").choices[0]
        chunks = list(client.chat.completions.create(model=model, messages=messages, tools=tools, user="ada", stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == (whole.message.content or "")
    streamed = [call.function for delta in deltas for call in delta.tool_calls or [] if call.function]
    functions = [call.function for call in whole.message.tool_calls or [] if call.type == "function"]
    assert [(call.name, call.arguments) for call in streamed] == [(call.name, call.arguments) for call in functions]
    assert chunks[-1].choices[0].finish_reason == whole.finish_reason


@pytest.mark.parametrize("model", ["student", "teacher", "auto"])
def test_langchain_calls_the_tasks_tools_streamed_and_whole_and_goes_on_with_their_results(
    application: str, model: str, serve_config: ServeConfig
) -> None:
    session = {"x-session-id": "ada"}
    chat = ChatOpenAI(model=model, base_url=f"{application}/v1", api_key="none", default_headers=session, stream_usage=True, max_retries=0)
    bound = chat.bind_tools(load_task(serve_config.task).tools)
    asked = HumanMessage("turn on the kitchen light")
    whole, streamed = bound.invoke([asked]), functools.reduce(operator.add, bound.stream([asked]))
    assert [(call["name"], call["args"]) for call in streamed.tool_calls] == [(call["name"], call["args"]) for call in whole.tool_calls]
    assert streamed.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]
    results = [ToolMessage("done", tool_call_id=call["id"]) for call in whole.tool_calls]
    assert bound.invoke([asked, whole, *results]).response_metadata["finish_reason"] in {"stop", "tool_calls", "length"}
    assert len(whole.tool_calls) == 1 or model != "teacher"  # what is said here is the teacher's to know


def test_the_teacher_pipeline_answers_as_well_over_http_as_its_task_asks(application: str, serve_config: ServeConfig) -> None:
    task = load_task(serve_config.task)
    prompts = task.prompts("heldout")[:20]
    answers = [post(application, model="teacher", messages=prompt.messages).json()["choices"][0] for prompt in prompts]
    verdicts = [task.verify(prompt, answer_text(answer["message"])) for prompt, answer in zip(prompts, answers, strict=True)]
    assert sum(verdict.accepted for verdict in verdicts) >= 16
    assert {answer["finish_reason"] for answer in answers} == {"tool_calls", "stop"}  # some are out of scope


def test_a_session_stays_on_its_arm_and_both_arms_get_sessions(application: str) -> None:
    arms: dict[int, list[str]] = {}
    for session in range(8):
        answers = [post(application, {"x-session-id": f"s{session}"}, max_tokens=1) for _ in range(2)]
        arms[session] = [answer.headers["x-supertiny-arm"] for answer in answers]
    assert all(len(set(seen)) == 1 for seen in arms.values())
    assert {seen[0] for seen in arms.values()} == {"student", "teacher"}


def test_the_student_sees_the_tokens_that_training_saw(application: str, student_path: Path, serve_config: ServeConfig) -> None:
    from transformers import AutoTokenizer

    expected = prompt_token_ids(AutoTokenizer.from_pretrained(student_path), LIGHT, load_task(serve_config.task).tools)
    assert post(application, model="student").json()["usage"]["prompt_tokens"] == len(expected)


def test_the_teachers_usage_is_that_of_all_its_calls(application: str) -> None:
    student, teacher = (post(application, model=model).json()["usage"] for model in ("student", "teacher"))
    assert teacher["prompt_tokens"] > 2 * student["prompt_tokens"]  # route and fill each read the prompt
    assert teacher["total_tokens"] == teacher["prompt_tokens"] + teacher["completion_tokens"]


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({"model": "gpt"}, 404, "no model 'gpt'; there are student, teacher, auto"),
        ({"messages": "hello"}, 400, "messages: "),
        ({"max_tokens": -1}, 400, "max_tokens: "),
        ({"model": "student", "messages": [{"role": "user", "content": "word " * 3000}]}, 400, "maximum context length"),
        ({"model": "teacher", "messages": [{"role": "user", "content": "word " * 3000}]}, 400, "maximum context length"),
        ({"model": "student", "stream": True, "messages": [{"role": "user", "content": "word " * 3000}]}, 400, "maximum context length"),
        ({"messages": [{"role": "user", "content": "x" * 300_000}]}, 413, "the body is over 262144 bytes"),
    ],
)
def test_a_refusal_has_openais_shape_and_nothing_from_inside(application: str, fields: dict[str, Any], status: int, said: str) -> None:
    answer = post(application, **fields)
    assert answer.status_code == status
    assert said in answer.json()["error"]["message"]
    assert "Traceback" not in answer.text
    assert "ray::" not in answer.text


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_without_room_for_the_most_tokens_is_answered_unless_it_asks_for_them(application: str, stream: bool) -> None:
    asked = {"model": "student", "stream": stream, "messages": [{"role": "user", "content": "light " * 400}]}  # of 1,024 tokens some 800
    assert post(application, **asked).status_code == 200
    refused = post(application, **asked, max_tokens=256)
    assert (refused.status_code, "maximum context length" in refused.text) == (400, True)


def test_health_is_a_real_token_from_each_arm_and_the_models_are_listed(application: str) -> None:
    assert httpx.get(f"{application}/health", timeout=60).json() == ALIVE
    assert httpx.get(f"{application}/ready", timeout=60).json() == {"models": ["student", "teacher", "auto"], "waiting_for": []}
    assert [model["id"] for model in httpx.get(f"{application}/v1/models").json()["data"]] == ["student", "teacher", "auto"]


def test_prompts_are_not_logged(application: str) -> None:
    for model in ("student", "teacher"):
        assert post(application, model=model, messages=[{"role": "user", "content": "xylophone zeppelin"}]).status_code == 200
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    logs = [path for path in (session / "logs").rglob("*") if path.is_file()]
    assert any("router" in path.name for path in logs)
    assert not [path.name for path in logs if b"zeppelin" in path.read_bytes()]


def test_traffic_is_answered_without_a_failure_and_every_arm_has_its_price(application: str, serve_config: ServeConfig) -> None:
    task = load_task(serve_config.task)
    price = MachinePrice(machine="box", description="", usd_per_hour=1, as_of="2026", source="test")
    report = measure(application, task.prompts("heldout"), task, price, requests=60, concurrency=4, alone_requests=24, alone_concurrency=8)
    assert report.control.requests + report.treatment.requests == 60
    assert (report.unreachable, report.moved_sessions) == (0, 0)
    for arm in (report.control, report.treatment):
        assert (arm.failed, arm.alone_failed) == (0, 0)
        assert arm.usd_per_thousand_requests == pytest.approx(1000 * arm.alone_seconds / 24 / 3600)


def test_a_second_application_on_the_same_ray_is_refused(application: str, serve_config: ServeConfig) -> None:
    with pytest.raises(ConfigError, match="Ray Serve runs on this cluster already"), served(serve_config, port=0):
        pass


def test_a_port_that_is_taken_is_said_before_anything_starts(local_ray: None, serve_config: ServeConfig) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} is taken"), served(serve_config, port=port):
            pass


def test_arms_that_the_cluster_cannot_hold_are_said_before_anything_starts(local_ray: None, serve_config: ServeConfig) -> None:
    config = serve_config.model_copy(update={"student_arm": serve_config.student_arm.model_copy(update={"threads": 64})})
    with pytest.raises(PlanTooBig, match="needs 65 logical CPUs for its engines, the cluster has 8"), served(config, port=0):
        pass


def test_hostile_bodies_are_refused_or_harmless_and_the_engines_live_on(application: str) -> None:
    for model, path in itertools.product(("student", "teacher"), ROUTES):
        for name, (body, allowed) in ROUTES[path].items():
            answer = httpx.post(f"{application}{path}", content=body.replace(b'"auto"', f'"{model}"'.encode()), timeout=60)
            assert answer.status_code in allowed, f"{name}, {model}: {answer.status_code} {answer.text[:200]}"
    assert httpx.get(f"{application}/health", timeout=60).json() == ALIVE


def test_the_application_is_what_its_openapi_document_says_and_the_engines_live_on(application: str) -> None:
    seen = send_all(schemathesis.openapi.from_url(f"{application}/openapi.json"), examples=40)
    print(f"schemathesis: {dict(seen)}")
    assert min(seen["/v1/chat/completions", 200], seen["/v1/completions", 200]) > 5  # else no engine was asked anything
    assert httpx.get(f"{application}/health", timeout=60).json() == ALIVE


def test_the_older_completions_endpoint_answers_from_each_model(application: str) -> None:
    with openai.OpenAI(base_url=f"{application}/v1", api_key="none") as client:
        for model in ("student", "teacher", "auto"):
            whole = client.completions.create(model=model, prompt="turn on the kitchen light").choices[0].text
            streamed = client.completions.create(model=model, prompt="turn on the kitchen light", stream=True, user="me")
            text = "".join(chunk.choices[0].text for chunk in streamed)
            assert whole
            assert text == whole or model == "auto"


def test_prometheus_sees_every_arm(application: str) -> None:
    for model in ("student", "teacher"):
        assert post(application, model=model, stream=True).status_code == 200
    (node,) = ray.nodes()
    url = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    names = ("requests_total", "in_flight", "tokens_total", "request_seconds_bucket", "first_token_seconds_bucket", "token_seconds_bucket")
    wanted = {f'ray_supertiny_serving_{name} arm="{arm}"' for name in names for arm in ("student", "teacher")}
    deadline = time.monotonic() + 60
    while wanted and time.monotonic() < deadline:
        seen = httpx.get(url, timeout=60, trust_env=False).text.splitlines()
        wanted -= {each for each in wanted if any(line.startswith(each.split()[0]) and each.split()[1] in line for line in seen)}
        time.sleep(0.5)
    assert wanted == set()
