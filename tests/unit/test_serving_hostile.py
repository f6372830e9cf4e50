"""No body brings the router down: the advisories' and those that hypothesis makes up."""

import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fake_arms import FakeArm, Served
from tests.hostile import ANY, ROUTES

from supertiny.serving.config import LimitsConfig

FIELDS = [
    "model",
    "messages",
    "stream",
    "stream_options",
    "max_tokens",
    "temperature",
    "top_p",
    "seed",
    "stop",
    "n",
    "tools",
    "user",
    "prompt",
]
ROLES, MODELS = ["system", "user", "assistant", "tool"], ["auto", "student", "teacher"]
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from([*ROLES, *MODELS])
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=12
)
messages = st.lists(st.fixed_dictionaries({"role": st.sampled_from(ROLES), "content": st.text(max_size=40)}), min_size=1, max_size=3)
bodies = st.builds(
    lambda model, given, odd: {"model": model, "messages": given, **odd},
    st.sampled_from(MODELS),
    messages,
    st.dictionaries(st.sampled_from(FIELDS), values, max_size=3),
)


@pytest.fixture(scope="module")
def router() -> Served:
    """The default limits, and arms that answer."""
    return Served(student=FakeArm(), limits=LimitsConfig())


def post(router: Served, path: str, body: bytes) -> httpx.Response:
    """The answer to a raw body."""
    answer: httpx.Response = router.run(router.client.post(path, content=body))
    return answer


def in_openais_shape(answer: httpx.Response) -> bool:
    """Whether an error is what a client of OpenAI expects."""
    return answer.status_code < 400 or set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(("path", "name"), [(path, name) for path, bodies in ROUTES.items() for name in bodies])
def test_a_hostile_body_is_refused_or_harmless(router: Served, path: str, name: str) -> None:
    body, allowed = ROUTES[path][name]
    answer = post(router, path, body)
    assert answer.status_code in (allowed | ({200} if name.startswith("a prompt over") else set()))  # a fake arm takes any length
    assert in_openais_shape(answer)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(bodies, st.sampled_from(["/v1/chat/completions", "/v1/completions"]))
def test_no_mixture_of_fields_is_a_failure_of_ours(router: Served, fields: dict[str, Any], path: str) -> None:
    answer = post(router, path, json.dumps(fields).encode())
    assert answer.status_code in ANY
    assert in_openais_shape(answer)


@settings(max_examples=100)
@given(st.binary(max_size=200))
def test_no_bytes_are_a_failure_of_ours(router: Served, body: bytes) -> None:
    assert post(router, "/v1/chat/completions", body).status_code == 400


@pytest.mark.parametrize("name", ["x-session-id", "traceparent", "authorization", "content-type", "content-length-x"])
@pytest.mark.parametrize("value", [b"\xff\xfe", b"x" * 5000, b"00-0-0-0", b"../../", b"{}"])
def test_no_header_is_a_failure_of_ours(router: Served, name: str, value: bytes) -> None:
    content = b'{"model": "auto", "messages": [{"role": "user", "content": "x"}]}'
    request = router.client.build_request("POST", "/v1/chat/completions", content=content, headers=[(name.encode(), value)])
    answer: httpx.Response = router.run(router.client.send(request))
    assert answer.status_code in ANY
    assert in_openais_shape(answer)
