"""Traces: spans reach a collector, under the caller's, and their context is for the calls within."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from supertiny.serving.tracing import NoTracer, OtelTracer, tracer_of

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector(HTTPServer):
    """Takes OTLP over HTTP."""

    bodies: list[bytes]
    received: threading.Event


class Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        self.server.bodies.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
        self.server.received.set()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector(("127.0.0.1", 0), Handler)
    server.bodies, server.received = [], threading.Event()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_span_goes_to_the_collector_under_the_callers_and_its_context_goes_on(collector: Collector) -> None:
    span = OtelTracer(f"http://127.0.0.1:{collector.server_port}").start("generate auto", {"traceparent": f"00-{TRACE}-{PARENT}-01"})
    assert span.traceparent is not None
    _, trace, own, _ = span.traceparent.split("-")
    assert trace == TRACE
    assert own != PARENT
    span.set("supertiny.arm", "student")
    span.end()
    assert collector.received.wait(60)
    (body,) = collector.bodies
    assert bytes.fromhex(TRACE) in body
    assert bytes.fromhex(PARENT) in body
    assert bytes.fromhex(own) in body
    assert b"student" in body


def test_without_an_endpoint_nothing_is_traced() -> None:
    tracer = tracer_of(None)
    assert isinstance(tracer, NoTracer)
    assert tracer.start("generate auto", {"traceparent": f"00-{TRACE}-{PARENT}-01"}).traceparent is None
