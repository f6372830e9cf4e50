"""The HTTP face: OpenAI's chat completions for the models `student`, `teacher` and `auto`, thin and without state.

Answers carry `x-supertiny-arm` (student or teacher) and `x-supertiny-assignment` (split where `auto` chose, requested otherwise).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from supertiny.errors import ArmBusy, PromptRefused
from supertiny.llm.base import Sampling
from supertiny.records import Completion, Message, Tool
from supertiny.serving.config import LimitsConfig
from supertiny.serving.request import ChatRequest, parse_request
from supertiny.serving.split import assign, session_of
from supertiny.serving.stream import JsonObject, Piece, completion_body, events

SESSION_HEADER, ARM_HEADER, ASSIGNMENT_HEADER = "x-session-id", "x-supertiny-arm", "x-supertiny-assignment"
_HEALTH_SECONDS = 10
log = logging.getLogger(__name__)


class Arm(Protocol):
    """One way of answering a conversation."""

    async def complete(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """The whole answer.

        Raises:
            PromptRefused: the engine cannot take this conversation.
            ArmBusy: the queue is full, or no replica is there.
        """

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> AsyncIterator[Piece]:
        """The answer as it comes; raises as `complete` does."""

    async def check(self) -> None:
        """Generate one token for real; raises where the arm cannot."""


@dataclass(frozen=True)
class Routes:
    """What a router chooses from and by which rules."""

    arms: Mapping[str, Arm]
    """By name: `teacher`, and `student` where one was promoted."""
    tools: Sequence[Tool]
    traffic_fraction: float
    salt: str
    limits: LimitsConfig

    def models(self) -> list[str]:
        """The names that `model` may have."""
        return [*self.arms, "auto"]

    def choose(self, request: ChatRequest, session_header: str | None) -> tuple[str, str]:
        """Name of the arm that answers, and whether the split or the request named it."""
        if request.model in self.arms:
            return request.model, "requested"
        if request.model == "auto":
            return assign(self.salt, session_of(session_header, request.user), self.traffic_fraction), "split"
        if request.model == "student":
            raise HTTPException(404, "no student is served: none was promoted, or its gate did not pass; ask for teacher or auto")
        raise HTTPException(404, f"no model {request.model[:64]!r}; there are {', '.join(self.models())}")


def router_app(routes: Routes) -> FastAPI:
    """The ASGI application over these arms; it knows nothing of Ray, so that it can be tried over fakes."""
    app = FastAPI(title="supertiny", docs_url=None, redoc_url=None)
    app.add_exception_handler(StarletteHTTPException, _error_response)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await _chat(routes, request)

    @app.get("/v1/models")
    async def models() -> JSONResponse:
        owner = {"object": "model", "created": 0, "owned_by": "supertiny"}
        return JSONResponse({"object": "list", "data": [{"id": name, **owner} for name in routes.models()]})

    @app.get("/health")
    async def health() -> JSONResponse:
        """Liveness: every arm draws one token."""
        states = await _states(routes.arms)
        return JSONResponse(states, status_code=200 if set(states.values()) == {"ok"} else 503)

    answered: set[str] = set()

    @app.get("/ready")
    async def ready() -> JSONResponse:
        """Readiness: every arm has drawn a token since this router started; Serve starts it beside the engines, not after them."""
        states = await _states({name: arm for name, arm in routes.arms.items() if name not in answered})
        answered.update(name for name, state in states.items() if state == "ok")
        waiting = [name for name in routes.arms if name not in answered]
        return JSONResponse({"models": routes.models(), "waiting_for": waiting}, status_code=503 if waiting else 200)

    return app


async def _chat(routes: Routes, http: Request) -> Response:
    body = await _body(http, routes.limits.body_bytes)
    try:
        request = parse_request(body, routes.limits, routes.tools)
    except ValueError as error:
        raise HTTPException(400, str(error)) from None
    name, assignment = routes.choose(request, http.headers.get(SESSION_HEADER))
    headers = {ARM_HEADER: name, ASSIGNMENT_HEADER: assignment}
    deadline = asyncio.get_running_loop().time() + routes.limits.seconds
    answer = _streamed if request.stream else _whole
    try:
        async with asyncio.timeout_at(deadline):
            return await answer(name, routes.arms[name], request, routes.limits, headers, deadline)
    except Exception as error:  # the edge: whatever happened, the client gets a body in OpenAI's shape
        raise _refusal(name, error, headers) from None


async def _whole(name: str, arm: Arm, request: ChatRequest, limits: LimitsConfig, headers: dict[str, str], deadline: float) -> Response:
    completion = await arm.complete(request.plain_messages(), request.sampling(limits))
    return JSONResponse(completion_body(name, completion), headers=headers)


async def _streamed(name: str, arm: Arm, request: ChatRequest, limits: LimitsConfig, headers: dict[str, str], deadline: float) -> Response:
    pieces = aiter(arm.stream(request.plain_messages(), request.sampling(limits)))
    first = await anext(pieces)  # a refusal has a status only before the headers have gone
    answer = events(name, _in_time(first, pieces, deadline), request.stream_options.include_usage)
    return StreamingResponse(
        _with_error_event(name, answer), media_type="text/event-stream", headers={"cache-control": "no-cache", **headers}
    )


async def _in_time(first: Piece, rest: AsyncIterator[Piece], deadline: float) -> AsyncIterator[Piece]:
    piece: Piece | None = first
    while piece is not None:
        yield piece
        async with asyncio.timeout_at(deadline):
            piece = await anext(rest, None)


async def _with_error_event(name: str, answer: AsyncIterator[str]) -> AsyncIterator[str]:
    """The events, and where they break off an error event in place of `[DONE]`."""
    try:
        async for event in answer:
            yield event
    except Exception as error:
        refusal = _refusal(name, error, {})
        yield f"data: {json.dumps(error_body(refusal.status_code, refusal.detail))}\n\n"


def _refusal(name: str, error: Exception, headers: dict[str, str]) -> HTTPException:
    """What a client is told of a failure: nothing from inside, except why its own prompt was refused."""
    if isinstance(error, PromptRefused):
        return HTTPException(400, str(error), headers)
    if isinstance(error, ArmBusy):
        return HTTPException(503, f"the {name} is overloaded; try again", {"retry-after": "1", **headers})
    if isinstance(error, TimeoutError):
        return HTTPException(504, f"the {name} did not answer in time", headers)
    log.error("%s failed: %s", name, type(error).__name__, exc_info=error)
    return HTTPException(500, f"the {name} failed", headers)


async def _body(http: Request, limit_bytes: int) -> bytes:
    """The request's body, read no further than the limit."""
    body = bytearray()
    async for chunk in http.stream():
        body += chunk
        if len(body) > limit_bytes:
            raise HTTPException(413, f"the body is over {limit_bytes} bytes")
    return bytes(body)


async def _states(arms: Mapping[str, Arm]) -> dict[str, str]:
    """By name `ok` or `failed`: whether each arm draws a token in time."""
    return dict(zip(arms, await asyncio.gather(*map(_state, arms.values())), strict=True))


async def _state(arm: Arm) -> str:
    try:
        async with asyncio.timeout(_HEALTH_SECONDS):
            await arm.check()
    except Exception as error:
        log.warning("health check failed: %s", type(error).__name__)
        return "failed"
    return "ok"


def error_body(status: int, message: str) -> JsonObject:
    """An error in OpenAI's shape."""
    kinds = {404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


async def _error_response(_: Request, error: Any) -> JSONResponse:
    return JSONResponse(error_body(error.status_code, error.detail), status_code=error.status_code, headers=error.headers)
