"""The router is what its OpenAPI document says; schemathesis makes the requests, arms by script answer."""

from __future__ import annotations

import schemathesis
from tests.fake_arms import FakeArm, Served
from tests.openapi import send_all

from supertiny.serving.config import LimitsConfig


def test_every_request_gets_an_answer_that_the_document_names() -> None:
    router = Served(student=FakeArm(), limits=LimitsConfig())
    seen = send_all(schemathesis.openapi.from_asgi("/openapi.json", router.app), examples=20)
    for path in ("/v1/chat/completions", "/v1/completions"):
        assert seen[path, 200] > 5
        assert seen[path, 400] > 5
