"""Whether a machine's end is seen where its cloud tells it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from supertiny.drain import WATCHED, ends


class _Metadata(BaseHTTPRequestHandler):
    """Answers as each cloud does: `/aws` and `/gcp` before an end, with `/soon` behind it once one is announced."""

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
def test_an_end_is_seen_once_it_is_announced_and_not_before(cloud: str, metadata: str) -> None:
    _, headers = WATCHED[cloud]
    assert not ends(f"{metadata}/{cloud}", headers)
    assert ends(f"{metadata}/{cloud}/soon", headers)


def test_a_machine_outside_of_a_cloud_does_not_end() -> None:
    assert not ends("http://127.0.0.1:9/", {})
