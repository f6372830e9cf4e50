"""The two systems that are compared: one call of the student, or the whole teacher pipeline."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any, TypeVar

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from supertiny.config import TaskConfig
from supertiny.errors import ArmBusy, NoProgress, PromptRefused
from supertiny.llm.base import GREEDY, Llm, Sampling
from supertiny.llm.config import EndpointConfig
from supertiny.llm.http import HttpLlm
from supertiny.records import Completion, Message, Prompt, Tool, Usage
from supertiny.serving.call import CallContext, current_call, within
from supertiny.serving.retry import answered, streamed
from supertiny.serving.stream import Piece, Refused, whole_piece
from supertiny.tasks.base import load_task

Answer = TypeVar("Answer")
log = logging.getLogger(__name__)
_PROBE: list[Message] = [{"role": "user", "content": "ping"}]
_ONE_TOKEN = Sampling(max_tokens=1)
_NOT_TAKEN = "the teacher does not take this conversation"
"""All that a client learns of somebody else's endpoint: its address and its words stay inside."""


class ServeLlm:
    """An `Llm` over the handle of an engine's deployment. It gives no token ids; with `logprobs`, `token_logprobs` without them.

    What its replica cannot finish before the first token, another one is asked for.

    Args:
        queue_seconds: longest wait until a replica takes a call; None waits for ever.
        adapter: name of the engine's adapter that everything goes through.
    """

    def __init__(self, engine: DeploymentHandle[Any], queue_seconds: float | None = None, adapter: str | None = None) -> None:
        self._queue_seconds, self._adapter = queue_seconds, adapter
        self._complete = engine.complete
        self._stream = engine.options(stream=True).stream

    async def complete(
        self, messages: Sequence[Message], *, tools: Sequence[Tool] = (), n: int = 1, sampling: Sampling = GREEDY, logprobs: int = 0
    ) -> list[Completion]:
        """`n` completions of a conversation."""
        with _arm_errors():
            answer: list[Completion] | Refused = await answered(
                lambda: self._complete.remote(list(messages), list(tools), n, sampling, logprobs, current_call(), self._adapter),
                self._queue_seconds,
            )
        return _accepted(answer)

    async def score(self, messages: Sequence[Message], text: str, *, tools: Sequence[Tool] = (), logprobs: int = 1) -> Completion:
        """The text as given, at no cost: logprobs are for training, so serving leaves the prefill out."""
        return Completion(text=text, usage=Usage(calls=0))

    async def stream(self, messages: Sequence[Message], tools: Sequence[Tool], sampling: Sampling) -> AsyncGenerator[Piece]:
        """One completion as it is drawn."""
        arguments = list(messages), list(tools), sampling
        with _arm_errors():
            async with aclosing(
                streamed(lambda: self._stream.remote(*arguments, current_call(), self._adapter), self._queue_seconds)
            ) as pieces:
                async for piece in pieces:
                    yield _accepted(piece)


class StudentArm:
    """The treatment: one call of the tiny model, shown the task's tools as in its training."""

    def __init__(self, llm: ServeLlm, tools: Sequence[Tool]) -> None:
        self._llm = llm
        self._tools = list(tools)

    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, logprobs: int = 0) -> Completion:
        """The whole answer."""
        (completion,) = await self._llm.complete(messages, tools=self._tools, sampling=sampling, logprobs=logprobs)
        return completion

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[Piece]:
        """The answer token by token."""
        return self._llm.stream(messages, self._tools, sampling)

    async def starting(self) -> bool:
        """Whether its engine has no replica up."""
        return await _none_is_up("student-engine")

    async def check(self) -> None:
        """One token."""
        await self._llm.complete(_PROBE, sampling=_ONE_TOKEN)


class TeacherArm:
    """The control: the teacher pipeline, behind the handle of a `TeacherPipeline`. It samples as its task says.

    Args:
        engine: name of the deployment of its engine; None where that is an endpoint.
    """

    def __init__(self, pipeline: DeploymentHandle[Any], engine: str | None) -> None:
        self._complete, self._check = pipeline.complete, pipeline.check  # each access would make a handle
        self._engine = engine

    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, logprobs: int = 0) -> Completion:
        """The whole answer."""
        with _arm_errors():
            answer: Completion | Refused = await answered(lambda: self._complete.remote(list(messages), current_call()))
        return _accepted(answer)

    async def stream(self, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[Piece]:
        """The answer in one piece: the pipeline has none before its last call is checked."""
        completion = await self.complete(messages, sampling)
        yield whole_piece(completion)

    async def starting(self) -> bool:
        """Whether its engine has no replica up."""
        return self._engine is not None and await _none_is_up(self._engine)

    async def check(self) -> None:
        """One token."""
        with _arm_errors():
            await answered(lambda: self._check.remote(current_call()))


class TeacherPipeline:
    """The light deployment that runs a task's `teach` over an `Llm`; many conversations are in flight at a time."""

    def __init__(self, task: TaskConfig, engine: DeploymentHandle[Any] | EndpointConfig, queue_seconds: float | None = None) -> None:
        self._task = load_task(task)
        self._llm: Llm = HttpLlm(engine) if isinstance(engine, EndpointConfig) else ServeLlm(engine, queue_seconds)

    async def complete(self, messages: Sequence[Message], call: CallContext) -> Completion | Refused:
        """The pipeline's answer, with the usage of all its calls, or why there is none."""
        try:
            with within(call):
                async with asyncio.timeout(call.seconds):
                    return await self._task.teach(Prompt(id="request", messages=list(messages)), self._llm)
        except PromptRefused as error:
            if isinstance(self._llm, ServeLlm):
                return Refused(reason=str(error))
            log.debug("%s", error)  # it may quote the prompt
            return Refused(reason=_NOT_TAKEN)
        except NoProgress as error:  # an endpoint that stays away
            log.warning("%s", error)
            raise ArmBusy("the teacher's endpoint failed at every try") from None

    async def check(self, call: CallContext) -> None:
        """One token."""
        with within(call):
            await self._llm.complete(_PROBE, sampling=_ONE_TOKEN)


def _accepted(answer: Answer | Refused) -> Answer:
    if isinstance(answer, Refused):
        raise PromptRefused(answer.reason)
    return answer


async def _none_is_up(deployment: str) -> bool:
    """Whether a deployment of this application has no replica that runs: it came from zero, or they died."""
    status = await asyncio.to_thread(serve.status)
    states = status.applications[serve.get_replica_context().app_name].deployments[deployment].replica_states
    return not any(count for state, count in states.items() if state == "RUNNING")


@contextmanager
def _arm_errors() -> Iterator[None]:
    """Ray's words for a full queue or a missing replica, as ours."""
    try:
        yield
    except (BackPressureError, DeploymentUnavailableError, RayActorError) as error:
        raise ArmBusy(f"{type(error).__name__}: the arm's queue is full or no replica of it is up") from None
