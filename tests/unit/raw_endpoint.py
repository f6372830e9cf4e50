"""A chat endpoint that misbehaves to the byte, for tests: it answers what it is told to, or half of it, or nothing."""

from __future__ import annotations

import json
import socketserver
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock, Thread
from typing import Any

Reply = Callable[[dict[str, Any], int], bytes]
"""From a request's body, and how often it came before, to all bytes of the answer; the connection is then closed."""


class _Handler(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        """One request."""
        head = b""
        while line := self.rfile.readline().strip():
            head += line.lower() + b"\n"
        if b"content-length: " not in head:
            return
        body = self.rfile.read(int(head.split(b"content-length: ")[1].split()[0]))
        self.wfile.write(self.server.answer(body))


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, reply: Reply) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self._reply, self._lock, self._times = reply, Lock(), dict[bytes, int]()

    def answer(self, body: bytes) -> bytes:
        """The reply's bytes."""
        with self._lock:
            times = self._times[body] = self._times.get(body, -1) + 1
        return self._reply(json.loads(body), times)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no matter."""


@contextmanager
def raw_endpoint(reply: Reply) -> Iterator[str]:
    """The base URL of an endpoint that is there as long as the context."""
    with _Server(reply) as server:
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()


def http(status: int, body: bytes, *, length: int | None = None, **headers: str) -> bytes:
    """An answer of HTTP; with another `length` than its body has, it is cut short on the way."""
    fields = {
        "Content-Length": len(body) if length is None else length,
        "Content-Type": "application/json",
        "Connection": "close",
        **headers,
    }
    lines = [f"HTTP/1.1 {status} So", *(f"{name.replace('_', '-')}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def completion(text: str) -> bytes:
    """The body of a chat completion."""
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}], "usage": usage}).encode()


GOOD = completion("hi")
BROKEN = {
    "half of a body": http(200, GOOD[: len(GOOD) // 2], length=len(GOOD)),
    "half of a body that says it is whole": http(200, GOOD[: len(GOOD) // 2]),
    "a body of nothing": http(200, b""),
    "nothing": b"",
    "half of a head": b"HTTP/1.1 200 O",
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "what is no gzip": http(200, GOOD, Content_Encoding="gzip"),
    "brackets without end": http(200, b'{"choices":' + b"[" * 100_000),
    "choices of null": http(200, b'{"choices": null}'),
    "a message of null": http(200, b'{"choices": [{"message": null, "finish_reason": "content_filter"}]}'),
    "a content that is no text": http(200, b'{"choices": [{"message": {"content": [{"type": "text", "text": "hi"}]}}]}'),
    "an error in a body of 200": http(200, b'{"error": {"message": "overloaded", "code": 502}}'),
    "403": http(403, b"flagged by moderation"),
    "408": http(408, b"too slow"),
    "429 and a digit that is no number": http(429, b"slow down", Retry_After="\u00b2"),
    "429": http(429, b"slow down"),
    "500": http(500, b"\xff\xfe no UTF-8"),
}
"""Answers that are none, by what is wrong with them."""
