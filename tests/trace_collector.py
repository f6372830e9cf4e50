"""An OpenTelemetry collector that keeps what it is sent."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Collector(ThreadingHTTPServer):
    """Takes OTLP over HTTP."""

    daemon_threads = True
    bodies: list[bytes]
    received: threading.Event

    @property
    def url(self) -> str:
        """For `trace_endpoint`."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        self.server.bodies.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
        self.server.received.set()

    def log_message(self, *_: object) -> None: ...


@contextmanager
def running_collector() -> Iterator[Collector]:
    """One on a free port."""
    server = Collector(("127.0.0.1", 0), _Handler)
    server.bodies, server.received = [], threading.Event()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
