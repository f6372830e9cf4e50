"""The traffic client against a small HTTP server of this process: what it counts, and what it calls a failure."""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from supertiny.cost import MachinePrice
from supertiny.errors import MissingInput
from supertiny.records import Call, Completion, Prompt, Tool, Verdict
from supertiny.serving.split import assign
from supertiny.serving.stream import completion_body
from supertiny.serving.traffic import TrafficReport, joined, measure, nearest_rank
from supertiny.tasks.calls import parse, render

PRICE = MachinePrice(machine="box", description="", usd_per_hour=3.6, as_of="2026", source="test")
RIGHT = [Call(name="stop", arguments={})]


class StopTask:
    """Every prompt's right answer is `stop`."""

    tools: ClassVar[list[Tool]] = []

    def prompts(self, split: str) -> list[Prompt]:
        return [Prompt(id=str(index), messages=[{"role": "user", "content": "stop"}], reference=RIGHT) for index in range(5)]

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        right = parse(text) == prompt.reference
        return Verdict(accepted=right, score=1.0 if right else -1.0)


class Server(ThreadingHTTPServer):
    """A server with the application's face: the teacher always fails, the student is right."""

    daemon_threads = True
    models: tuple[str, ...] = ("student", "teacher", "auto")
    seen: Counter[str]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._send(200, json.dumps({"data": [{"id": name} for name in self.server.models]}), {})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        model = request["model"] if request["model"] != "auto" else self._assigned()
        self.server.seen[f"{request['model']} {'streamed' if request['stream'] else 'whole'}"] += 1
        body = completion_body(model, Completion(text=render(RIGHT)))
        text = self._events(body) if request["stream"] else json.dumps(body)
        self._send(200 if model == "student" else 503, text, {"x-supertiny-arm": model})

    def log_message(self, *_: Any) -> None: ...

    def _assigned(self) -> str:
        return assign("salt", self.headers["x-session-id"], 0.5) if "student" in self.server.models else "teacher"

    @staticmethod
    def _events(body: dict[str, Any]) -> str:
        delta = body["choices"][0]["message"]
        return f"data: {json.dumps({'choices': [{'delta': delta}]})}\n\ndata: [DONE]\n\n"

    def _send(self, status: int, text: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(text.encode()))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.seen = Counter()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def measured(server: Server, **numbers: int) -> TrafficReport:
    """The report of a short measurement."""
    task: Any = StopTask()
    return measure(f"http://127.0.0.1:{server.server_port}", task.prompts("heldout"), task, PRICE, **numbers)


def test_every_request_is_counted_once_by_the_arm_that_answered(server: Server) -> None:
    report = measured(server, requests=60, concurrency=4, alone_requests=8, alone_concurrency=2)
    assert report.control.requests + report.treatment.requests == 60
    assert report.sessions == 20
    assert (report.moved_sessions, report.unreachable) == (0, 0)
    assert (server.seen["auto streamed"], server.seen["auto whole"]) == (15, 45)


def test_failed_requests_have_no_latency_and_no_price_and_right_ones_are_verified(server: Server) -> None:
    report = measured(server, requests=30, concurrency=2, alone_requests=8, alone_concurrency=2)
    assert report.control.failed == report.control.requests > 0
    assert (report.control.latency_seconds, report.control.usd_per_thousand_requests, report.control.alone_failed) == (None, None, 8)
    assert (report.treatment.failed, report.treatment.correct_fraction) == (0, 1.0)


def test_cost_is_price_times_the_seconds_alone_a_request(server: Server) -> None:
    arm = measured(server, requests=3, concurrency=1, alone_requests=10, alone_concurrency=2).treatment
    assert arm.usd_per_thousand_requests == pytest.approx(1000 * 0.001 * arm.alone_seconds / 10)


def test_without_a_student_the_treatment_is_empty(server: Server) -> None:
    server.models = ("teacher", "auto")
    report = measured(server, requests=6, concurrency=1, alone_requests=2, alone_concurrency=1)
    assert (report.treatment.requests, report.treatment.latency_seconds, report.treatment.usd_per_thousand_requests) == (0, None, None)
    assert report.control.requests == 6


def test_nothing_listening_is_said_at_once() -> None:
    task: Any = StopTask()
    with pytest.raises(MissingInput, match="no application answers there"):
        measure("http://127.0.0.1:9", task.prompts("heldout"), task, PRICE)


@pytest.mark.parametrize(
    "lines", [[], ['data: {"choices": [{"delta": {"content": "a"}}]}'], ['data: {"error": {"message": "broke"}}', "data: [DONE]"]]
)
def test_a_stream_that_breaks_off_is_no_answer(lines: list[str]) -> None:
    async def stream() -> AsyncIterator[str]:
        for line in lines:
            yield line

    with pytest.raises(ValueError, match="broke"):
        asyncio.run(joined(stream()))


def test_the_nearest_rank_is_a_value_that_was_seen() -> None:
    assert [nearest_rank([1, 2, 3, 4], fraction) for fraction in (0.0, 0.25, 0.5, 0.51, 0.95, 1.0)] == [1, 1, 2, 3, 4, 4]
