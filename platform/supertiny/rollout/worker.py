"""The process that runs teacher pipelines and verifiers: `python -m supertiny.rollout.worker SOCKET NOTE TRACE`, three file descriptors.

It may be blocked, crash or be killed at any time without harm to the engine, which is in another process (`rollout.sandbox`):

    SOCKET   messages of `rollout.wire`
    NOTE     eight bytes of shared memory: the row whose code is running at this moment, or NOBODY
    TRACE    where faulthandler writes the stack of a process that was blocked or crashed, before it ends it
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import mmap
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from itertools import count
from typing import Any

from supertiny.cli import configure_logging
from supertiny.errors import MalformedCall, NoProgress
from supertiny.llm.base import GREEDY, Sampling, current_step
from supertiny.records import Completion, Message, Prompt, Tool, Verdict
from supertiny.rollout import wire
from supertiny.tasks.base import Task, load_task
from supertiny.tasks.calls import check_schema, parse

log = logging.getLogger(__name__)
NOBODY = 2**64 - 1
NOTE_BYTES = 8
_NOBODY = NOBODY.to_bytes(NOTE_BYTES, "little")
LONGEST_TEXT_CHARS = 1_000_000
LONGEST_EVIDENCE_CHARS = 2_000
_CANCEL_SECONDS = 2.0
_MOST_THREADS = 4096
"""For `asyncio.to_thread`, whose own few would all be taken by the first tools that hang in one; a thread cannot be stopped."""
_ROW: ContextVar[int] = ContextVar("row", default=NOBODY)


class Noted(Coroutine[Any, Any, Any]):
    """A coroutine during whose steps the shared note has its row, so that a process that ends in one of them tells whose it was."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], row: int, note: mmap.mmap) -> None:
        self._coroutine, self._note, self._row = coroutine, note, row.to_bytes(NOTE_BYTES, "little")

    def send(self, value: Any) -> Any:
        """One step."""
        return self._step(self._coroutine.send, value)

    def throw(self, *error: Any) -> Any:
        """One step, which begins with an error."""
        return self._step(self._coroutine.throw, *error)

    def _step(self, step: Callable[..., Any], *values: Any) -> Any:
        self._note[:] = self._row
        try:
            result = step(*values)
        except (SystemExit, KeyboardInterrupt):  # these end the process, so the note stays
            raise
        except BaseException:
            self._note[:] = _NOBODY
            raise
        self._note[:] = _NOBODY
        return result

    def close(self) -> None:
        """End it."""
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._coroutine.__await__()


class RemoteLlm:
    """The `Llm` of the engine's process."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._calls = count()
        self.open_rows: set[int] = set()
        """Rows that may ask; one that was given up may not."""

    async def complete(
        self, messages: Sequence[Message], *, tools: Sequence[Tool] = (), n: int = 1, sampling: Sampling = GREEDY, logprobs: int = 0
    ) -> list[Completion]:
        """As `Llm.complete`."""
        arguments = {"messages": list(messages), "tools": list(tools), "n": n, "sampling": sampling, "logprobs": logprobs}
        return list(await self._ask("complete", arguments))

    async def score(self, messages: Sequence[Message], text: str, *, tools: Sequence[Tool] = (), logprobs: int = 1) -> Completion:
        """As `Llm.score`."""
        arguments = {"messages": list(messages), "text": text, "tools": list(tools), "logprobs": logprobs}
        completion: Completion = await self._ask("score", arguments)
        return completion

    def take(self, reply: wire.Reply) -> None:
        """Hand a reply to whoever waits for it."""
        future = self._waiting.pop(reply.call, None)
        if future is None or future.done():
            return
        if reply.error is not None:
            future.set_exception(reply.error)
        else:
            future.set_result(reply.value)

    async def _ask(self, method: str, arguments: dict[str, Any]) -> Any:
        row, call = _ROW.get(), next(self._calls)
        if row not in self.open_rows:
            raise TimeoutError("this rollout was given up")
        future = self._waiting[call] = asyncio.get_running_loop().create_future()
        wire.send(self._writer, wire.Ask(call, row, method, arguments, current_step()))
        try:
            return await future
        except asyncio.CancelledError:
            wire.send(self._writer, wire.Forget(call))
            raise


def main(socket_fd: int, note_fd: int, trace_fd: int) -> None:
    """Serve until the engine's process is gone."""
    for descriptor in (socket_fd, note_fd, trace_fd):
        os.set_inheritable(descriptor, False)  # what a tool starts shall not keep them open
    configure_logging()
    faulthandler.enable(trace_fd)
    try:
        asyncio.run(_serve(socket.socket(fileno=socket_fd), mmap.mmap(note_fd, NOTE_BYTES), trace_fd))
    except Exception:
        log.exception("the process of the pipelines")
    _end()


def _end() -> None:
    """End this process and what its tools left behind, at once: a tidy end would wait for pipelines and threads that hang."""
    os.killpg(0, signal.SIGKILL)  # the group is its own


async def _serve(connection: socket.socket, note: mmap.mmap, trace_fd: int) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=connection)
    start: wire.Start = await wire.receive(reader)
    try:
        task = load_task(start.task)
    except Exception as error:
        wire.send(writer, wire.Started(clip(describe(error))))
        return await writer.drain()
    wire.send(writer, wire.Started(""))
    loop = asyncio.get_running_loop()
    loop.set_task_factory(_factory(note))
    loop.set_default_executor(ThreadPoolExecutor(_MOST_THREADS))
    llm = RemoteLlm(writer)
    running = {asyncio.create_task(_beat(start.blocking_timeout_seconds, trace_fd))}
    while True:
        try:
            message = await wire.receive(reader)
        except (EOFError, ConnectionError):
            return _end()
        if isinstance(message, wire.Reply):
            llm.take(message)
            continue
        _ROW.set(message.row)  # for the new task, which copies the context
        row = asyncio.create_task(_solve(message, task, llm, start, writer))
        running.add(row)
        row.add_done_callback(running.discard)


def _factory(note: mmap.mmap) -> Any:
    def make(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        return asyncio.Task(Noted(coroutine, _ROW.get(), note), loop=loop, **options)

    return make


async def _beat(blocking_timeout_seconds: float, trace_fd: int) -> None:
    """Put off the end of the process while the event loop turns; faulthandler's thread needs no lock that blocked code may hold."""
    while True:
        faulthandler.dump_traceback_later(blocking_timeout_seconds, exit=True, file=trace_fd)
        await asyncio.sleep(blocking_timeout_seconds / 8)


async def _solve(message: wire.Solve, task: Task, llm: RemoteLlm, start: wire.Start, writer: asyncio.StreamWriter) -> None:
    llm.open_rows.add(message.row)
    completion = Completion(text="")
    try:
        completion = _checked(await _in_time(task.teach(message.prompt, llm), start.row_timeout_seconds))
        verdict = _verdict(task, message.prompt, completion, start.check_schema)
    except BaseException as error:  # SystemExit and CancelledError too, if the task raises them
        reason = "timed_out" if isinstance(error, TimeoutError) and not isinstance(error, NoProgress) else "failed"
        verdict = rejected(reason, describe(error))
    llm.open_rows.discard(message.row)
    wire.send(writer, wire.Solved(message.row, completion, verdict))


async def _in_time(pipeline: Coroutine[Any, Any, Completion], seconds: float) -> Completion:
    """What a pipeline returns; one that is late is cancelled, and left alone where it does not mind."""
    running = asyncio.create_task(_without_exit(pipeline))
    done, _ = await asyncio.wait({running}, timeout=seconds)
    if not done:
        running.cancel()
        await asyncio.wait({running}, timeout=_CANCEL_SECONDS)
        raise TimeoutError(f"the pipeline took longer than {seconds:g} s")
    return running.result()


async def _without_exit(pipeline: Coroutine[Any, Any, Completion]) -> Completion:
    try:
        return await pipeline
    except (SystemExit, KeyboardInterrupt) as error:  # would end the event loop
        raise RuntimeError(f"the pipeline raised {describe(error)}") from None


def _checked(completion: Any) -> Completion:
    if type(completion) is not Completion:  # a class of the task's own might not pickle
        raise TypeError(f"teach returned {type(completion).__name__}, expected Completion")
    if len(completion.text) > LONGEST_TEXT_CHARS:
        raise ValueError(f"an answer of {len(completion.text)} characters, at most {LONGEST_TEXT_CHARS} are kept: {completion.text[:80]!r}")
    return completion


def _verdict(task: Task, prompt: Prompt, completion: Completion, with_schema: bool) -> Verdict:
    """Whole, then calls, then calls that the schema takes, then what the verifier says, its evidence in bounds."""
    if completion.finish_reason == "length":  # its tokens lack the end of turn, so nothing could learn from it where to stop
        return rejected("cut_off", f"ran into max_tokens: …{completion.text[-80:]}")
    try:
        calls = parse(completion.text)
    except MalformedCall as error:
        return rejected("malformed", str(error))
    try:
        if with_schema:
            check_schema(calls, task.tools)
    except MalformedCall as error:
        return rejected("schema", str(error))
    verdict = task.verify(prompt, completion.text)
    if type(verdict) is not Verdict:
        raise TypeError(f"verify returned {type(verdict).__name__}, expected Verdict")
    return verdict.model_copy(update={"evidence": clip(verdict.evidence)})


def rejected(reason: str, evidence: str) -> Verdict:
    """The verdict on a row that came to no good end."""
    return Verdict(accepted=False, score=-1, reason=reason, evidence=clip(evidence))


def describe(error: BaseException) -> str:
    """An error's type and message, whatever its own `__str__` does."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


def clip(evidence: str) -> str:
    """The beginning of a text, which can be stored."""
    start = evidence[:LONGEST_EVIDENCE_CHARS].encode("utf-8", "backslashreplace").decode()
    return start + (" …" if len(evidence) > LONGEST_EVIDENCE_CHARS else "")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
