"""How a request is answered: by the arm that the routing of the moment names, counted, traced, and given up where nobody waits.

Answers say in `supertiny.serving.headers` who gave them, and who chose that.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field

from fastapi import HTTPException
from fastapi.responses import JSONResponse, Response, StreamingResponse

from supertiny.errors import ConfigError
from supertiny.llm.base import Sampling
from supertiny.records import Completion, Message, Usage
from supertiny.serving import refusals
from supertiny.serving.arm import Arm
from supertiny.serving.call import CallContext, in_time, within
from supertiny.serving.cascade import Answered, cascade
from supertiny.serving.closing import Closing
from supertiny.serving.config import LimitsConfig, RoutingConfig
from supertiny.serving.headers import ARM_HEADER, ASSIGNMENT_HEADER, CONFIDENCE_HEADER, SESSION_HEADER
from supertiny.serving.meter import Meter
from supertiny.serving.request import GenerationRequest
from supertiny.serving.shadow import Shadow
from supertiny.serving.split import assign, session_of
from supertiny.serving.stream import JsonObject, Piece, completion_body, events, whole_piece
from supertiny.serving.text import text_body, text_events
from supertiny.serving.tracing import Span, Tracer
from supertiny.tasks.base import Task

log = logging.getLogger(__name__)
_LONGEST_SESSION = 256
_EXPLAINED_SECONDS = 1.0


@dataclass(frozen=True)
class Shape:
    """An endpoint's way of writing answers down."""

    body: Callable[[str, Completion], JsonObject]
    events: Callable[[str, AsyncIterator[Piece], bool], AsyncIterator[str]]


CHAT, TEXT = Shape(completion_body, events), Shape(text_body, text_events)


@dataclass
class Exchange:
    """One request on its way through the router."""

    shape: Shape
    request: GenerationRequest
    messages: list[Message]
    sampling: Sampling
    routing: RoutingConfig
    arm: str
    assignment: str
    span: Span
    started: float = field(default_factory=time.monotonic)
    status: int = refusals.CLIENT_LEFT
    text: str = ""
    usage: Usage | None = None
    confidence: float | None = None

    @property
    def seconds(self) -> float:
        """Since it came."""
        return time.monotonic() - self.started

    @property
    def headers(self) -> dict[str, str]:
        """Those of its answer that are ours."""
        sure = {} if self.confidence is None else {CONFIDENCE_HEADER: f"{self.confidence:.6f}"}
        return {ARM_HEADER: self.arm, ASSIGNMENT_HEADER: self.assignment, **sure}

    def answered(self, text: str, usage: Usage | None) -> None:
        """The whole answer is there."""
        self.text, self.usage, self.status = text, usage, 200


class Answers:
    """What a router chooses from, and by which rules.

    Args:
        arms: by name: `teacher`, and `student` where there is one.
        may_answer: whether the student was promoted, and so may answer `auto`.
    """

    def __init__(
        self,
        arms: Mapping[str, Arm],
        task: Task,
        routing: RoutingConfig,
        limits: LimitsConfig,
        meter: Meter,
        tracer: Tracer,
        *,
        may_answer: bool,
    ) -> None:
        self.arms, self.task, self.limits, self.meter = arms, task, limits, meter
        self._tracer = tracer
        self._may_answer = may_answer
        self._shadow = Shadow(task, meter)
        self.routing = self._checked(routing)

    @property
    def models(self) -> list[str]:
        """The names that `model` may have."""
        return [*self.arms, "auto"]

    def switch(self, routing: RoutingConfig) -> None:
        """Route requests that come from now on by other rules.

        Raises:
            ConfigError: there is no student for them, or it was not promoted; the rules stay as they are.
        """
        self.routing = self._checked(routing)

    async def respond(self, shape: Shape, request: GenerationRequest, headers: Mapping[str, str]) -> Response:
        """The answer to a checked request.

        Raises:
            HTTPException: there is none; its status and message are for the client.
        """
        if self.meter.in_flight.total() - self._shadow.in_flight >= self.limits.in_flight:
            self.meter.refused("router_full")
            raise HTTPException(503, "the router is overloaded; try again", {"retry-after": "1"})
        exchange = self._exchange(shape, request, headers)
        async with AsyncExitStack() as stack:
            self.meter.asked(exchange.arm, 1)
            stack.callback(self._finish, exchange, exchange.arm)
            call = CallContext(seconds=self.limits.seconds, traceparent=exchange.span.traceparent)
            try:
                with within(call):
                    async with asyncio.timeout(call.seconds):
                        response = await self._answer(exchange, stack)
            except Exception as error:  # the edge: whatever happened, the client gets a body in OpenAI's shape
                refusal = refusals.of_arm(exchange.arm, await self._explained(exchange, error), exchange.headers)
                exchange.status = refusal.status_code
                raise refusal from None
            return Closing(response, stack.pop_all())

    def _checked(self, routing: RoutingConfig) -> RoutingConfig:
        if routing.student_answers and not self._may_answer:
            raise ConfigError(f"mode {routing.mode} with traffic_fraction {routing.traffic_fraction:g} needs a promoted student")
        if routing.mode != "split" and "student" not in self.arms:
            raise ConfigError(f"mode {routing.mode} needs a student, and none is served")
        return routing

    def _exchange(self, shape: Shape, request: GenerationRequest, headers: Mapping[str, str]) -> Exchange:
        routing = self.routing
        arm, assignment = self._choose(routing, request, headers.get(SESSION_HEADER))
        span = self._tracer.start(f"generate {request.model}", headers)
        return Exchange(shape, request, request.plain_messages(), request.sampling(self.limits), routing, arm, assignment, span)

    def _choose(self, routing: RoutingConfig, request: GenerationRequest, session: str | None) -> tuple[str, str]:
        """Name of the arm that is asked first, and whether a mode or the request named it."""
        if request.model in self.arms:
            return request.model, "requested"
        if request.model == "student":
            raise self._refusal(404, "no student is served: none was promoted, or its gate did not pass; ask for teacher or auto")
        if request.model != "auto":
            raise self._refusal(404, f"no model {request.model[:64]!r}; there are {', '.join(self.models)}")
        if len(session or "") > _LONGEST_SESSION:
            raise self._refusal(400, f"{SESSION_HEADER}: over {_LONGEST_SESSION} characters")
        if routing.mode == "cascade":
            return "student", "cascade"
        return assign(routing.salt, session_of(session, request.user), routing.traffic_fraction), routing.mode

    def _refusal(self, status: int, message: str) -> HTTPException:
        self.meter.refused(f"http_{status}")
        return HTTPException(status, message)

    async def _explained(self, exchange: Exchange, error: Exception) -> Exception:
        """What failed; the deadline of a request that waited for an arm without a replica is no fault of either."""
        if isinstance(error, TimeoutError):
            for name in self.arms if exchange.assignment == "cascade" else (exchange.arm,):
                if await _starting(self.arms[name]):
                    return refusals.of_start(name, exchange.headers)
        return error

    async def _answer(self, exchange: Exchange, stack: AsyncExitStack) -> Response:
        if exchange.assignment == "cascade":
            return await self._cascaded(exchange)
        return await (self._streamed(exchange, stack) if exchange.request.stream else self._whole(exchange))

    async def _whole(self, exchange: Exchange) -> Response:
        completion = await self.arms[exchange.arm].complete(exchange.messages, exchange.sampling)
        return self._written(exchange, completion)

    async def _cascaded(self, exchange: Exchange) -> Response:
        arms, threshold = self.arms, exchange.routing.cascade.threshold
        answer: Answered = await cascade(arms["student"], arms["teacher"], self.task, threshold, exchange.messages, exchange.sampling)
        self.meter.cascade(answer.outcome)
        exchange.arm, exchange.confidence = answer.arm, answer.confidence
        if exchange.request.stream:
            self.meter.first_token(exchange.arm, exchange.seconds)
        return self._written(exchange, answer.completion)

    def _written(self, exchange: Exchange, completion: Completion) -> Response:
        exchange.answered(completion.text, completion.usage)
        if not exchange.request.stream:
            return JSONResponse(exchange.shape.body(exchange.arm, completion), headers=exchange.headers)
        return _event_stream(exchange, _one(whole_piece(completion)))

    async def _streamed(self, exchange: Exchange, stack: AsyncExitStack) -> Response:
        pieces = self.arms[exchange.arm].stream(exchange.messages, exchange.sampling)
        stack.push_async_callback(pieces.aclose)
        first = await anext(pieces)  # a refusal has a status only before the headers have gone
        self.meter.first_token(exchange.arm, exchange.seconds)
        left = self.limits.seconds - exchange.seconds
        return _event_stream(exchange, _watched(exchange, first, in_time(pieces, left)))

    def _finish(self, exchange: Exchange, asked: str) -> None:
        self.meter.asked(asked, -1)
        self.meter.answered(exchange.arm, exchange.assignment, exchange.status, exchange.seconds)
        exchange.span.set("supertiny.arm", exchange.arm)
        exchange.span.set("http.response.status_code", exchange.status)
        exchange.span.end()
        if exchange.usage is not None:
            self.meter.spent(exchange.arm, exchange.usage, exchange.seconds)
        if exchange.routing.log_prompts:
            log.info("conversation %s", json.dumps({"messages": exchange.messages, "answer": exchange.text, **exchange.headers}))
        if exchange.assignment == "shadow" and exchange.status == 200:
            other = "teacher" if exchange.arm == "student" else "student"
            self._shadow.copy(
                exchange.routing.shadow, (other, self.arms[other]), exchange.messages, exchange.sampling, exchange.text, self.limits.seconds
            )


async def _starting(arm: Arm) -> bool:
    """Whether an arm says soon that it has no replica: who is past the deadline waits for no controller that is away."""
    with suppress(Exception):
        async with asyncio.timeout(_EXPLAINED_SECONDS):
            return await arm.starting()
    return False


async def _one(piece: Piece) -> AsyncIterator[Piece]:
    yield piece


async def _watched(exchange: Exchange, first: Piece, rest: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
    """The pieces, noted down; the exchange is answered once all were taken."""
    pieces = [first]
    yield first
    async for piece in rest:
        pieces.append(piece)
        yield piece
    exchange.answered("".join(piece.text for piece in pieces), next((piece.usage for piece in pieces if piece.usage), None))


def _event_stream(exchange: Exchange, pieces: AsyncIterator[Piece]) -> Response:
    answer = exchange.shape.events(exchange.arm, pieces, exchange.request.stream_options.include_usage)
    headers = {"cache-control": "no-cache", **exchange.headers}
    return StreamingResponse(_with_error_event(exchange, answer), media_type="text/event-stream", headers=headers)


async def _with_error_event(exchange: Exchange, answer: AsyncIterator[str]) -> AsyncIterator[str]:
    """The events, and where they break off an error event in place of `[DONE]`."""
    try:
        async for event in answer:
            yield event
    except Exception as error:
        refusal = refusals.of_arm(exchange.arm, error, {})
        exchange.status = refusal.status_code
        yield f"data: {json.dumps(refusals.error_body(refusal.status_code, refusal.detail))}\n\n"
