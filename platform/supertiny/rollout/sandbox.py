"""Teacher pipelines and verifiers in a process of their own, so that nothing they do can stop the engine or the job.

One process runs all the pipelines of an engine at once, and their calls of the model come back here. Where it is blocked in synchronous
code for too long, or crashes, it ends; a note in shared memory says whose code was running, that row is rejected, and a new process begins
the others again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from itertools import count
from threading import Thread

from supertiny.errors import ConfigError, NoProgress
from supertiny.llm.base import Llm, pipeline_step
from supertiny.llm.config import TokenPriceConfig
from supertiny.records import Completion, Prompt, Verdict
from supertiny.rollout import wire
from supertiny.rollout.meter import Clock, Meter
from supertiny.rollout.worker import NOBODY, NOTE_BYTES, rejected

log = logging.getLogger(__name__)
MOST_ATTEMPTS = 3
"""Of a row whose process ends while nobody's code was running; so that every row comes to an end."""
_TRACE_BYTES = 20_000
_LAST_WORDS_SECONDS = 1.0
_LAST_CALLS_SECONDS = 15.0


@dataclass
class Solution:
    """What became of one prompt, and what it took of the engine, rows begun again included."""

    completion: Completion
    verdict: Verdict
    meter: Meter


@dataclass
class _Row:
    prompt: Prompt
    meter: Meter
    solved: asyncio.Future[tuple[Completion, Verdict]]
    attempts: int = 1
    calls: set[asyncio.Task[None]] = field(default_factory=set)
    """Under way."""


@dataclass
class _Process:
    """A running worker and what belongs to it."""

    popen: subprocess.Popen[bytes]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    note: int
    """File descriptors of memory that the process writes: see `rollout.worker`."""
    trace: int
    calls: dict[int, asyncio.Task[None]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Death:
    """How a worker ended, in whose code, and what faulthandler wrote of it."""

    status: int
    row: int
    trace: str


class Sandbox:
    """Solves prompts with a task's teacher pipeline and verifier, outside this process, over a model inside it.

    Belongs to one event loop. The process is started with the first prompt.

    Args:
        start: the task and its limits.
        llm: what the pipelines call.
        clock: of the engine under it.
        price: of its tokens, where it is an endpoint that has one.
    """

    def __init__(self, start: wire.Start, llm: Llm, clock: Clock, price: TokenPriceConfig | None = None) -> None:
        self._start, self._llm, self._clock, self._price = start, llm, clock, price
        self._rows: dict[int, _Row] = {}
        self._names = count()
        self._runner: asyncio.Task[None] | None = None
        self._process: _Process | None = None

    async def solve(self, prompt: Prompt) -> Solution:
        """A prompt's answer and verdict; a pipeline that hangs, raises or ends its process is a rejected row.

        Raises:
            ConfigError: the task cannot be loaded in another process.
            NoProgress: no such process can be started.
        """
        row = _Row(prompt, Meter(self._llm, self._clock, price=self._price), asyncio.get_running_loop().create_future())
        name = next(self._names)
        self._rows[name] = row
        if self._process is not None:
            wire.send(self._process.writer, wire.Solve(name, prompt))
        elif self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run())
        try:
            completion, verdict = await row.solved
        finally:
            self._rows.pop(name, None)
            await _end_calls(row)
        return Solution(completion, verdict, row.meter)

    async def aclose(self) -> None:
        """End the process."""
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.gather(self._runner, return_exceptions=True)

    async def _run(self) -> None:
        """Processes, one after another; what none of them can live with, every row raises."""
        try:
            while True:
                process = await _open()
                try:
                    await self._serve(process)
                finally:
                    self._process = None
                    death = await _end(process)
                self._bury(death)
        except Exception as error:
            for row in self._rows.values():
                if not row.solved.done():
                    row.solved.set_exception(error)

    async def _serve(self, process: _Process) -> None:
        """Answer a process until it ends."""
        died = asyncio.Event()
        Thread(target=_wait, args=(process.popen, asyncio.get_running_loop(), died), daemon=True).start()
        reading, dying = asyncio.create_task(self._read(process)), asyncio.create_task(died.wait())
        try:
            await asyncio.wait({reading, dying}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({reading, dying}, timeout=_LAST_WORDS_SECONDS)
            if reading.done():
                await reading
        finally:
            reading.cancel()
            dying.cancel()
            for call in process.calls.values():
                _cancel(call)

    async def _read(self, process: _Process) -> None:
        wire.send(process.writer, self._start)
        await _started(process, self._start.task.path)
        for name, row in self._rows.items():
            if not row.solved.done():
                wire.send(process.writer, wire.Solve(name, row.prompt))
        self._process = process
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                self._take(process, await wire.receive(process.reader))

    def _take(self, process: _Process, message: wire.Ask | wire.Forget | wire.Solved) -> None:
        if isinstance(message, wire.Solved):
            self._settle(message.row, message.completion, message.verdict)
        elif isinstance(message, wire.Forget):
            if call := process.calls.get(message.call):
                _cancel(call)
        elif message.row in self._rows:
            row = self._rows[message.row]
            call = process.calls[message.call] = asyncio.create_task(_answer(process, message, row.meter))
            row.calls.add(call)
            call.add_done_callback(row.calls.discard)
            call.add_done_callback(lambda _: process.calls.pop(message.call, None))

    def _settle(self, name: int, completion: Completion, verdict: Verdict) -> None:
        row = self._rows.get(name)
        if row is not None and not row.solved.done():
            row.solved.set_result((completion, verdict))

    def _bury(self, death: _Death) -> None:
        """Reject the row whose code ended the process, or rows that were there too often; the others are begun again."""
        waiting = {name: row for name, row in self._rows.items() if not row.solved.done()}
        if death.row in waiting:
            verdict = _sentence(death, self._start.blocking_timeout_seconds)
            log.warning("prompt %s: %s; %d others begin again", waiting[death.row].prompt.id, verdict.evidence, len(waiting) - 1)
            self._settle(death.row, Completion(text=""), verdict)
            return
        if waiting:  # else there is nothing left to do, and the machine ends it
            log.warning("the process of the pipelines ended, %s, in nobody's code: %s", _ended(death.status), _where(death.trace))
        for name, row in waiting.items():
            row.attempts += 1
            if row.attempts > MOST_ATTEMPTS:
                evidence = f"the process of the pipelines ended {MOST_ATTEMPTS} times while this row was in it, last {_ended(death.status)}"
                self._settle(name, Completion(text=""), rejected("crashed", evidence))


async def _end_calls(row: _Row) -> None:
    """End a row's calls that nobody waits for, so that its meter has all that they used."""
    for call in row.calls:
        _cancel(call)
    if row.calls:
        await asyncio.wait(set(row.calls), timeout=_LAST_CALLS_SECONDS)


def _cancel(call: asyncio.Task[None]) -> None:
    """Cancel a call once: a second time would interrupt the engine as it says what the call has used."""
    if not call.cancelling():
        call.cancel()


async def _started(process: _Process, task_path: str) -> None:
    try:
        started: wire.Started = await wire.receive(process.reader)
    except (EOFError, ConnectionError):
        raise NoProgress("the process of the pipelines ended before it began; its last words are in the log") from None
    if started.problem:
        raise ConfigError(f"task.path {task_path} cannot be loaded in a process of its own: {started.problem}")


async def _answer(process: _Process, ask: wire.Ask, meter: Meter) -> None:
    try:
        with pipeline_step(ask.step):
            reply = wire.Reply(ask.call, value=await getattr(meter, ask.method)(**ask.arguments))
    except Exception as error:
        reply = wire.Reply(ask.call, error=wire.portable(error))
    wire.send(process.writer, reply)


def _sentence(death: _Death, blocking_timeout_seconds: float) -> Verdict:
    if death.trace.startswith("Timeout ("):
        return rejected("timed_out", f"let nothing else run for {blocking_timeout_seconds:g} s, in {_where(death.trace)}")
    return rejected("crashed", f"its process ended {_ended(death.status)}, in {_where(death.trace)}")


def _ended(status: int) -> str:
    return f"by {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"


def _where(trace: str) -> str:
    """The innermost frames of the thread that the event loop runs in, as faulthandler wrote them."""
    threads = re.split(r"\n\n|(?=^Thread |^Current thread )", trace, flags=re.MULTILINE)
    ours = next((thread for thread in threads if "/rollout/worker.py" in thread), trace)
    return " < ".join(line.strip() for line in ours.splitlines() if line.startswith("  File"))[:400] or "code that left no trace"


async def _open() -> _Process:
    here, there = socket.socketpair()
    note, trace = os.memfd_create("note"), os.memfd_create("trace")
    os.write(note, NOBODY.to_bytes(NOTE_BYTES, "little"))
    descriptors = (there.fileno(), note, trace)
    popen = subprocess.Popen(
        [sys.executable, "-m", "supertiny.rollout.worker", *map(str, descriptors)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        stdin=subprocess.DEVNULL,
        pass_fds=descriptors,
        start_new_session=True,
    )
    there.close()
    reader, writer = await asyncio.open_unix_connection(sock=here)
    return _Process(popen, reader, writer, note, trace)


async def _end(process: _Process) -> _Death:
    """How a process ended; one that still runs is killed, with all that it started."""
    process.writer.close()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.popen.pid, signal.SIGKILL)
    while (status := process.popen.poll()) is None:
        await asyncio.sleep(0.01)
    row, trace = (os.pread(descriptor, _TRACE_BYTES, 0) for descriptor in (process.note, process.trace))
    os.close(process.note)
    os.close(process.trace)
    return _Death(status, int.from_bytes(row, "little"), trace.decode(errors="replace"))


def _wait(popen: subprocess.Popen[bytes], loop: asyncio.AbstractEventLoop, died: asyncio.Event) -> None:
    popen.wait()
    with contextlib.suppress(RuntimeError):  # the loop is closed already
        loop.call_soon_threadsafe(died.set)
