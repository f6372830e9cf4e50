"""A job server that strangers can use is refused; one that asks for a token, or that only this machine reaches, is not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from supertiny.errors import OpenCluster
from supertiny.jobserver import answers_without_token, is_local, refuse_open


class _Server(BaseHTTPRequestHandler):
    """As Ray's: lists jobs, with `token` set only to those who bring it."""

    token: str | None = None

    def do_GET(self) -> None:
        allowed = self.token is None or self.headers.get("authorization") == f"Bearer {self.token}"
        self.send_response(200 if allowed and self.path == "/api/jobs/" else 401)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(params=[None, "secret"])
def server(request: pytest.FixtureRequest) -> Iterator[tuple[str, bool]]:
    """Its port, on all addresses, and whether it is open."""
    handler = type("Handler", (_Server,), {"token": request.param})
    http = HTTPServer(("0.0.0.0", 0), handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield str(http.server_port), request.param is None
    http.shutdown()
    http.server_close()


def test_only_a_server_without_a_token_answers_strangers(server: tuple[str, bool]) -> None:
    port, is_open = server
    assert answers_without_token(f"http://127.0.0.1:{port}") is is_open


def test_an_open_one_is_refused_where_others_reach_it(server: tuple[str, bool]) -> None:
    port, is_open = server
    network = f"http://0.0.0.0:{port}"  # not a loopback address, and this machine
    if is_open:
        with pytest.raises(OpenCluster, match=r"open to the network.*RAY_AUTH_MODE=token"):
            refuse_open(network)
    else:
        refuse_open(network)
    refuse_open(f"http://127.0.0.1:{port}")


def test_one_that_does_not_answer_is_not_open() -> None:
    assert not answers_without_token("http://127.0.0.1:9", limit_seconds=1)


@pytest.mark.parametrize(
    ("host", "local"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("10.0.0.4", False), ("0.0.0.0", False), ("head", False)]
)
def test_loopback_is_this_machine_alone(host: str, local: bool) -> None:
    assert is_local(host) is local
