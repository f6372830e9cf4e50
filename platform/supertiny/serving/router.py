"""The HTTP face: OpenAI's endpoints for the models `student`, `teacher` and `auto`; thin, and it knows nothing of Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from supertiny.serving import document, refusals
from supertiny.serving.answers import CHAT, TEXT, Answers, Shape
from supertiny.serving.closing import Closing
from supertiny.serving.headers import NO_DISCONNECT_HEADER
from supertiny.serving.keys import Guard, Refusal
from supertiny.serving.probes import Probes
from supertiny.serving.request import ChatRequest, GenerationRequest, TextRequest, parse_request

_NOT_YET: dict[int | str, dict[str, Any]] = {503: {"description": "The same, of an arm that does not"}}


def router_app(answers: Answers, guard: Guard, alive: Probes) -> FastAPI:
    """The ASGI application over these arms.

    Args:
        guard: who may ask.
        alive: of the arms that are always up.
    """
    app = FastAPI(title="supertiny", docs_url=None, redoc_url=None)
    app.add_exception_handler(StarletteHTTPException, refusals.error_response)
    app.add_exception_handler(Exception, refusals.failure_response)

    @app.post("/v1/chat/completions", **document.generation(ChatRequest))
    async def chat_completions(request: Request) -> Response:
        return await _generate(answers, guard, request, CHAT, ChatRequest)

    @app.post("/v1/completions", **document.generation(TextRequest))
    async def completions(request: Request) -> Response:
        return await _generate(answers, guard, request, TEXT, TextRequest)

    @app.get("/v1/models", responses=document.refusals(401))
    async def models(request: Request) -> JSONResponse:
        with _refused(answers):
            guard.check(request.headers.get("authorization"))
        owner = {"object": "model", "created": 0, "owned_by": "supertiny"}
        return JSONResponse({"object": "list", "data": [{"id": name, **owner} for name in answers.models]})

    @app.get("/admin/status", responses=document.refusals(401, 403))
    async def status(request: Request) -> JSONResponse:
        """What this router does and has done; needs an admin key."""
        with _refused(answers):
            guard.check(request.headers.get("authorization"), admin=True)
        meter = answers.meter
        return JSONResponse({"routing": answers.routing.model_dump(), "in_flight": dict(meter.in_flight), "counts": dict(meter.counts)})

    @app.get("/health", responses=_NOT_YET)
    async def health() -> JSONResponse:
        """Liveness: every arm draws one token."""
        states = await alive.alive()
        return JSONResponse(states, status_code=200 if set(states.values()) <= {"ok"} else 503)

    @app.get("/ready", responses=_NOT_YET)
    async def ready() -> JSONResponse:
        """Readiness: every arm has drawn a token since this router started; Serve starts it beside the engines, not after them."""
        waiting = await alive.waiting_for()
        return JSONResponse({"models": answers.models, "waiting_for": waiting}, status_code=503 if waiting else 200)

    document.describe(app, answers.models)
    return app


async def _generate(answers: Answers, guard: Guard, http: Request, shape: Shape, kind: type[GenerationRequest]) -> Response:
    async with AsyncExitStack() as stack:
        with _refused(answers):
            stack.enter_context(guard.admit(http.headers.get("authorization")))
        try:
            async with asyncio.timeout(answers.limits.seconds):
                request = await _request(answers, http, kind)
        except (HTTPException, TimeoutError, ClientDisconnect) as error:
            refusal = refusals.of_body(error)
            answers.meter.refused(f"http_{refusal.status_code}")
            raise refusal from None
        response = await answers.respond(shape, request, http.headers)
        return Closing(response, stack.pop_all())


async def _request(answers: Answers, http: Request, kind: type[GenerationRequest]) -> GenerationRequest:
    if NO_DISCONNECT_HEADER in http.headers:
        raise HTTPException(400, f"{NO_DISCONNECT_HEADER}: no such header here")
    body = await _body(http, answers.limits.body_bytes)
    try:
        return parse_request(kind, body, answers.limits, answers.task.tools)
    except ValueError as error:
        raise HTTPException(400, str(error)) from None


async def _body(http: Request, limit_bytes: int) -> bytes:
    """The request's body, read no further than the limit."""
    body = bytearray()
    async for chunk in http.stream():
        body += chunk
        if len(body) > limit_bytes:
            raise HTTPException(413, f"the body is over {limit_bytes} bytes")
    return bytes(body)


@contextmanager
def _refused(answers: Answers) -> Iterator[None]:
    """A guard's refusal, counted and in HTTP's words."""
    try:
        yield
    except Refusal as refusal:
        answers.meter.refused(f"key_{refusal.status}", refusal.key)
        raise refusals.of_guard(refusal) from None
