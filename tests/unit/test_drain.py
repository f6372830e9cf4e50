"""Whether a machine's end is seen where its cloud tells it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from supertiny.drain import SESSIONS, WATCHED, ends


class _Metadata(BaseHTTPRequestHandler):
    """Answers as each cloud does: `/aws` and `/gcp` before an end, with `/soon` behind it once one is announced; AWS to a session alone."""

    answers = {  # noqa: RUF012
        "/aws": (404, ""),
        "/aws/soon": (200, '{"action": "terminate", "time": "2026-01-01T00:00:00Z"}'),
        "/gcp": (200, "FALSE"),
        "/gcp/soon": (200, "TRUE"),
    }

    def do_GET(self) -> None:
        status, body = self.answers[self.path]
        if "gcp" in self.path and self.headers.get("Metadata-Flavor") != "Google":
            status = 403
        if "aws" in self.path and self.headers.get("X-aws-ec2-metadata-token") != "a session":
            status = 401
        self._answer(status, body)

    def do_PUT(self) -> None:
        asked = self.path == "/session" and int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"]) > 0
        self._answer(200 if asked else 400, "a session" if asked else "")

    def _answer(self, status: int, body: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def metadata() -> Iterator[str]:
    http = HTTPServer(("127.0.0.1", 0), _Metadata)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    http.server_close()


@pytest.mark.parametrize("cloud", WATCHED)
def test_an_end_is_seen_once_it_is_announced_and_not_before(cloud: str, metadata: str, caplog: pytest.LogCaptureFixture) -> None:
    _, headers = WATCHED[cloud]
    session = f"{metadata}/session" if cloud in SESSIONS else None
    with caplog.at_level("WARNING"):
        assert not ends(f"{metadata}/{cloud}", headers, session)
        assert ends(f"{metadata}/{cloud}/soon", headers, session)
    assert caplog.text == ""


def test_a_service_that_does_not_let_us_ask_is_said_so(metadata: str, caplog: pytest.LogCaptureFixture) -> None:
    assert not ends(f"{metadata}/aws/soon", {})
    assert "does not say whether this machine ends: HTTP Error 401" in caplog.text


def test_a_machine_outside_of_a_cloud_does_not_end() -> None:
    assert not ends("http://127.0.0.1:9/", {})
