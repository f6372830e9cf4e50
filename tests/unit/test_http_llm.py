"""`HttpLlm` against a real server on this machine."""

from __future__ import annotations

import asyncio
import logging
import socketserver
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import fastapi
import pytest
import uvicorn
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from raw_endpoint import BROKEN, GOOD, http, raw_endpoint

from supertiny.errors import ConfigError, MalformedCall, NoProgress, PromptRefused
from supertiny.llm.base import Sampling
from supertiny.llm.config import EndpointConfig
from supertiny.llm.http import HttpLlm
from supertiny.records import Call, Completion
from supertiny.tasks.calls import parse

HELLO = [{"role": "user", "content": "hello"}]
KEY = "SUPERTINY_TEST_KEY"
Answer = Callable[[dict[str, Any]], Response]


class Endpoint:
    """A chat endpoint that answers each request with the next of `answers`, the last one for ever, and remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.under_way = self.most_under_way = 0
        self.app = fastapi.FastAPI()
        self.app.post("/v1/chat/completions")(self._answer)

    async def _answer(self, request: fastapi.Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.keys.append(request.headers.get("authorization"))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await asyncio.sleep(0.01)
        self.under_way -= 1
        return self.answers[min(len(self.bodies), len(self.answers)) - 1](body)


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Endpoint, int]]:
    endpoint = Endpoint()
    running = uvicorn.Server(uvicorn.Config(endpoint.app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    yield endpoint, running.servers[0].sockets[0].getsockname()[1]
    running.should_exit = True
    thread.join(10)


@pytest.fixture
def endpoint(server: tuple[Endpoint, int]) -> Endpoint:
    server[0].__init__()  # type: ignore[misc]  # forget the last test; the app that runs stays
    return server[0]


@pytest.fixture
def url(server: tuple[Endpoint, int]) -> str:
    return f"http://127.0.0.1:{server[1]}/v1"


def says(*texts: str, finish_reason: str = "stop") -> Answer:
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}
    choices = [{"message": {"role": "assistant", "content": text}, "finish_reason": finish_reason} for text in texts]
    return lambda _: JSONResponse({"choices": choices, "usage": usage})


def fails(status: int, text: str = "no", **headers: str) -> Answer:
    return lambda _: PlainTextResponse(text, status, headers={key.replace("_", "-"): value for key, value in headers.items()})


def ask(llm: HttpLlm, times: int = 1, **options: Any) -> list[Completion]:
    async def go() -> list[Completion]:
        try:
            return [one for many in await asyncio.gather(*(llm.complete(HELLO, **options) for _ in range(times))) for one in many]
        finally:
            await llm.aclose()

    return asyncio.run(go())


def quick(url: str, **settings: Any) -> HttpLlm:
    return HttpLlm(EndpointConfig(base_url=url, model="big", first_backoff_seconds=0.01, **settings))


def test_a_completion_has_the_text_why_it_ended_and_what_it_cost(endpoint: Endpoint, url: str) -> None:
    endpoint.answers = [says("hi", finish_reason="length")]
    completion = ask(quick(url))[0]
    assert (completion.text, completion.finish_reason, completion.token_ids, completion.top_k) == ("hi", "length", [], None)
    assert completion.usage.model_dump() == {"calls": 1, "prompt_tokens": 7, "cached_tokens": 4, "completion_tokens": 3}


def test_the_cost_of_several_completions_is_counted_once(endpoint: Endpoint, url: str) -> None:
    endpoint.answers = [says("a", "b")]
    completions = ask(quick(url), n=2)
    total = completions[0].usage + completions[1].usage
    assert [completion.text for completion in completions] == ["a", "b"]
    assert (total.calls, total.prompt_tokens, total.completion_tokens) == (1, 7, 3)


@pytest.mark.parametrize(("usd", "warnings"), [(0.0, 0), (1.0, 1)])
def test_an_endpoint_that_has_a_price_and_does_not_say_what_it_used_is_warned_of_once(
    usd: float, warnings: int, endpoint: Endpoint, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint.answers = [lambda _: JSONResponse({"choices": [{"message": {"content": "hi"}}]})]
    ask(quick(url, price={"prompt_usd": usd, "completion_usd": usd}), times=3)
    assert caplog.text.count("does not say what it used") == warnings


def test_sampling_and_tools_are_sent_in_the_words_of_the_protocol(endpoint: Endpoint, url: str) -> None:
    endpoint.answers = [says("hi", "ho")]
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    sampling = Sampling(temperature=0.5, top_p=0.9, max_tokens=9, stop=("\n",), seed=3)
    ask(quick(url), n=2, tools=[tool], sampling=sampling)
    assert endpoint.bodies == [
        {
            "model": "big",
            "messages": HELLO,
            "n": 2,
            "temperature": 0.5,
            "top_p": 0.9,
            "max_tokens": 9,
            "stop": ["\n"],
            "seed": 3,
            "tools": [tool],
        }
    ]


def test_the_longest_answer_is_called_as_the_endpoint_calls_it(endpoint: Endpoint, url: str) -> None:
    endpoint.answers = [says("hi")]
    ask(quick(url, max_tokens_field="max_completion_tokens"), sampling=Sampling(max_tokens=9))
    assert (endpoint.bodies[0].get("max_completion_tokens"), "max_tokens" in endpoint.bodies[0]) == (9, False)


def test_a_schema_for_the_answer_is_sent_as_the_response_format(endpoint: Endpoint, url: str) -> None:
    endpoint.answers = [says("{}")]
    ask(quick(url), sampling=Sampling(json_schema={"type": "object"}))
    expected = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True}}
    assert endpoint.bodies[0]["response_format"] == expected


def test_tool_calls_become_text_in_the_students_format(endpoint: Endpoint, url: str) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "set_light", "arguments": '{"room": "hall"}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    endpoint.answers = [lambda _: JSONResponse({"choices": [{"message": message, "finish_reason": "tool_calls"}]})]
    assert parse(ask(quick(url))[0].text) == [Call(name="set_light", arguments={"room": "hall"})]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_or_broken_endpoint_is_asked_again(endpoint: Endpoint, url: str, status: int) -> None:
    endpoint.answers = [fails(status), fails(status), says("hi")]
    assert ask(quick(url, max_retries=2))[0].text == "hi"
    assert len(endpoint.bodies) == 3


def test_retry_after_is_waited_for(endpoint: Endpoint, url: str) -> None:
    endpoint.answers = [fails(429, Retry_After="1"), says("hi")]
    started = time.monotonic()
    ask(quick(url))
    assert time.monotonic() - started >= 1


def test_an_endpoint_that_stays_broken_is_given_up_with_what_it_said(endpoint: Endpoint, url: str) -> None:
    endpoint.answers = [fails(503, "overloaded")]
    llm = quick(url, max_retries=2)
    with pytest.raises(NoProgress, match="HTTP 503 overloaded, 3 times"):
        ask(llm)
    assert isinstance(llm.failure, NoProgress)


def test_an_endpoint_that_is_not_there_is_given_up_too() -> None:
    with pytest.raises(NoProgress, match="ConnectError"):
        ask(quick("http://127.0.0.1:1/v1", max_retries=1))


def test_a_slow_answer_is_a_try_that_failed() -> None:
    def dawdle(*_: object) -> bytes:
        time.sleep(0.5)
        return b""

    with raw_endpoint(dawdle) as url, pytest.raises(NoProgress, match=r"no whole answer within 0.1 s, 1 times"):
        ask(quick(url, max_retries=0, timeout_seconds=0.1))


def test_an_endpoint_that_answers_nobody_is_given_up_after_two_tries_of_a_call() -> None:
    asked: list[float] = []

    def never(*_: object) -> bytes:
        asked.append(time.monotonic())
        time.sleep(3)
        return b""

    with raw_endpoint(never) as url:
        llm = quick(url, max_retries=9, timeout_seconds=1)
        with pytest.raises(NoProgress, match=r"no whole answer within 1 s, 2 times, nor has anybody else had one"):
            ask(llm)
    assert (len(asked), type(llm.failure)) == (2, NoProgress)


def test_an_answer_that_comes_byte_by_byte_has_to_end_in_time() -> None:
    class Dripping(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(http(200, b"{", length=1000))
            for _ in range(100):
                self.wfile.write(b" ")
                time.sleep(0.05)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Dripping) as server:
        server.daemon_threads, server.block_on_close = True, False
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        llm = quick(f"http://127.0.0.1:{server.server_address[1]}/v1", max_retries=0, timeout_seconds=0.3)
        with pytest.raises(NoProgress, match=r"no whole answer within 0.3 s"):
            ask(llm)
        server.shutdown()


def test_a_request_that_the_endpoint_refuses_is_not_repeated_and_the_next_one_is_still_sent(endpoint: Endpoint, url: str) -> None:
    endpoint.answers = [fails(400, "too long")]
    llm = quick(url)
    with pytest.raises(PromptRefused, match="HTTP 400 too long"):
        ask(llm)
    assert len(endpoint.bodies) == 1
    assert llm.failure is None


@pytest.mark.parametrize("status", [301, 307, 401, 402, 404])
def test_a_wrong_key_or_address_or_an_empty_account_is_the_configs_fault(endpoint: Endpoint, url: str, status: int) -> None:
    endpoint.answers = [fails(status)]
    llm = quick(url)
    with pytest.raises(ConfigError, match="check base_url, model and api_key_env"):
        ask(llm)
    assert len(endpoint.bodies) == 1
    assert llm.failure is not None


def test_a_page_is_the_configs_fault(endpoint: Endpoint, url: str) -> None:
    endpoint.answers = [lambda _: PlainTextResponse("<html>")]
    with pytest.raises(ConfigError, match="answered no JSON: '<html>'; is base_url right"):
        ask(quick(url))


def test_json_that_is_no_chat_completion_is_said_when_the_endpoint_is_given_up(endpoint: Endpoint, url: str) -> None:
    endpoint.answers = [lambda _: JSONResponse({"hello": 1})] * 2
    with pytest.raises(NoProgress, match=r'answered no chat completion: {"hello":1}, 2 times'):
        ask(quick(url, max_retries=1))


def test_the_key_comes_from_the_environment(endpoint: Endpoint, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint.answers = [says("hi")]
    monkeypatch.setenv(KEY, "s3cret")
    ask(quick(url, api_key_env=KEY))
    assert endpoint.keys == ["Bearer s3cret"]


@pytest.mark.parametrize("around", ["{}\n", " {}\r\n"])
def test_white_space_around_the_key_is_no_part_of_it(around: str, endpoint: Endpoint, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint.answers = [says("hi")]
    monkeypatch.setenv(KEY, around.format("s3cret"))
    ask(quick(url, api_key_env=KEY))
    assert endpoint.keys == ["Bearer s3cret"]


@pytest.mark.parametrize("key", ["s3cret\nX-Other: 1", "s3cret\u2026"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_told(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, key)
    with pytest.raises(ConfigError, match=KEY) as caught:
        HttpLlm(EndpointConfig(base_url="http://127.0.0.1:1/v1", model="big", api_key_env=KEY))
    assert "s3cret" not in str(caught.value)


def test_a_key_that_is_not_set_is_named_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY, raising=False)
    with pytest.raises(ConfigError, match=KEY):
        HttpLlm(EndpointConfig(base_url="http://127.0.0.1:1/v1", model="big", api_key_env=KEY))


def test_no_more_requests_are_under_way_than_allowed(endpoint: Endpoint, url: str) -> None:
    endpoint.answers = [says("hi")]
    ask(quick(url, max_concurrency=3), times=12)
    assert (len(endpoint.bodies), endpoint.most_under_way) == (12, 3)


def test_hundreds_of_requests_are_under_way_where_that_is_allowed() -> None:
    together = threading.Barrier(150)

    def wait(*_: object) -> bytes:
        together.wait(20)
        return http(200, GOOD)

    with raw_endpoint(wait) as url:
        assert len(ask(quick(url, max_concurrency=150, max_retries=0), times=150)) == 150


def test_a_score_has_no_tokens_and_costs_nothing(url: str) -> None:
    completion = asyncio.run(quick(url).score(HELLO, "yes", logprobs=5))
    assert (completion.text, completion.token_ids, completion.top_k, completion.usage.calls) == ("yes", [], None, 0)


@pytest.mark.parametrize("what", BROKEN)
def test_an_answer_that_breaks_on_the_way_is_asked_for_again_and_paid_for_once(what: str) -> None:
    with raw_endpoint(lambda _, times: BROKEN[what] if times < 2 else http(200, GOOD)) as url:
        completion = ask(quick(url, max_retries=2))[0]
    assert completion.text == "hi"
    assert (completion.usage.calls, completion.usage.prompt_tokens) == (1, 7)


@pytest.mark.parametrize("what", BROKEN)
def test_an_endpoint_whose_answers_always_break_is_given_up(what: str) -> None:
    with raw_endpoint(lambda *_: BROKEN[what]) as url, pytest.raises(NoProgress, match="2 times"):
        ask(quick(url, max_retries=1))


def ask_beside_others(reply: Callable[[dict[str, Any], int], bytes]) -> tuple[HttpLlm, BaseException]:
    """What becomes of the one request that is always answered badly, and the model after that."""

    async def go(llm: HttpLlm) -> BaseException:
        others = (llm.complete([{"role": "user", "content": f"fine {at}"}]) for at in range(3))
        poison, *answers = await asyncio.gather(llm.complete([{"role": "user", "content": "poison"}]), *others, return_exceptions=True)
        await llm.aclose()
        assert not any(isinstance(answer, BaseException) for answer in answers)
        assert isinstance(poison, BaseException)
        return poison

    def answer(body: dict[str, Any], times: int) -> bytes:
        if body["messages"][0]["content"] == "poison":
            return reply(body, times)
        time.sleep(0.1)
        return http(200, GOOD)

    with raw_endpoint(answer) as url:
        llm = HttpLlm(EndpointConfig(base_url=url, model="big", max_retries=2, first_backoff_seconds=0.4))
        return llm, asyncio.run(go(llm))


@pytest.mark.parametrize("what", [what for what in BROKEN if not what.startswith("429")])
def test_a_request_that_fails_at_every_try_while_others_are_answered_fails_alone(what: str) -> None:
    llm, error = ask_beside_others(lambda *_: BROKEN[what])
    assert isinstance(error, NoProgress)
    assert "3 times, while others were answered" in str(error)
    assert llm.failure is None


def test_a_request_that_an_overloaded_endpoint_never_takes_is_not_the_requests_fault() -> None:
    llm, error = ask_beside_others(lambda *_: http(429, b"slow down"))
    assert isinstance(error, NoProgress)
    assert "HTTP 429 slow down, 3 times; lower max_concurrency or raise max_retries" in str(error)
    assert llm.failure is error


def test_the_pause_before_a_retry_doubles_and_is_drawn() -> None:
    with raw_endpoint(lambda *_: http(500, b"")) as url:
        waited = []
        for _ in range(3):
            started = time.monotonic()
            with pytest.raises(NoProgress):
                ask(HttpLlm(EndpointConfig(base_url=url, model="big", max_retries=3, first_backoff_seconds=0.1)))
            waited.append(time.monotonic() - started)
    assert min(waited) >= (0.1 + 0.2 + 0.4) / 2
    assert len({round(seconds, 4) for seconds in waited}) == 3


def test_an_endpoint_that_gives_fewer_completions_than_asked_for_is_asked_for_the_others(endpoint: Endpoint, url: str) -> None:
    endpoint.answers = [says("a"), says("b", "c")]
    completions = ask(quick(url), n=3, sampling=Sampling(temperature=1, seed=7))
    assert [completion.text for completion in completions] == ["a", "b", "c"]
    assert [(body["n"], body["seed"]) for body in endpoint.bodies] == [(3, 7), (2, 8)]
    assert sum(completion.usage.calls for completion in completions) == 2


def test_an_answer_without_a_choice_is_refused(endpoint: Endpoint, url: str) -> None:
    endpoint.answers = [lambda _: JSONResponse({"choices": []})]
    with pytest.raises(PromptRefused, match="answered no choice"):
        ask(quick(url))


@pytest.mark.parametrize("arguments", ["{", "[1]", "7", '{"a": 1}, "name": "other"', "</tool_call>"])
def test_arguments_that_are_no_object_are_an_answer_that_is_malformed_and_paid_for(endpoint: Endpoint, url: str, arguments: str) -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    usage = {"prompt_tokens": 7, "completion_tokens": 3}
    endpoint.answers = [lambda _: JSONResponse({"choices": [{"message": message}], "usage": usage})]
    completion = ask(quick(url))[0]
    assert completion.usage.completion_tokens == 3
    with pytest.raises(MalformedCall):
        parse(completion.text)


@pytest.mark.parametrize(
    "what",
    ["401", "500", "nothing", "<html>", "400 that says the key", "500 that says the key", "JSON with the key", "no choice and the key"],
)
def test_the_key_is_in_no_log_and_no_error(what: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    answers = {
        "401": http(401, b"no such key"),
        "500": http(500, b"no"),
        "nothing": b"",
        "<html>": http(200, b"<html>"),
        "400 that says the key": http(400, b"you sent Authorization: Bearer s3cret"),
        "500 that says the key": http(500, b"you sent Authorization: Bearer s3cret"),
        "JSON with the key": http(200, b'{"headers": {"Authorization": "Bearer s3cret"}}'),
        "no choice and the key": http(200, b'{"choices": [], "headers": {"Authorization": "Bearer s3cret"}}'),
    }
    monkeypatch.setenv(KEY, "s3cret")
    caplog.set_level(logging.DEBUG)
    with raw_endpoint(lambda *_: answers[what]) as url:
        llm = quick(url, api_key_env=KEY, max_retries=1)
        with pytest.raises((ConfigError, NoProgress, PromptRefused)) as caught:
            ask(llm)
    assert "s3cret" not in caplog.text + "".join(traceback.format_exception(caught.value)) + repr(llm) + repr(vars(llm))
