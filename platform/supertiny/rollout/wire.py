"""Messages between an engine's process and the process of its teacher pipelines: pickles, each after its length."""

from __future__ import annotations

import pickle
import struct
from asyncio import StreamReader, StreamWriter
from dataclasses import dataclass
from typing import Any

from supertiny.config import TaskConfig
from supertiny.records import Completion, Prompt, Verdict

_LENGTH = struct.Struct("!Q")


@dataclass(frozen=True)
class Start:
    """To the pipelines, first of all: what to run, and how long."""

    task: TaskConfig
    check_schema: bool
    row_timeout_seconds: float
    blocking_timeout_seconds: float


@dataclass(frozen=True)
class Started:
    """Back: the task is loaded, or why it is not."""

    problem: str


@dataclass(frozen=True)
class Solve:
    """To the pipelines: a prompt."""

    row: int
    prompt: Prompt


@dataclass(frozen=True)
class Solved:
    """Back: its answer and the verdict on it."""

    row: int
    completion: Completion
    verdict: Verdict


@dataclass(frozen=True)
class Ask:
    """To the engine: call `Llm.complete` or `Llm.score` for a row."""

    call: int
    row: int
    method: str
    arguments: dict[str, Any]
    step: str
    """The pipeline step that asks."""


@dataclass(frozen=True)
class Forget:
    """To the engine: nobody waits for this call any more."""

    call: int


@dataclass(frozen=True)
class Reply:
    """Back: what the call returned, or what it raised."""

    call: int
    value: Any = None
    error: Exception | None = None


async def receive(reader: StreamReader) -> Any:
    """The next message.

    Raises:
        EOFError: the other process is gone (asyncio.IncompleteReadError).
        ConnectionError: likewise.
    """
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    return pickle.loads(await reader.readexactly(length))


def send(writer: StreamWriter, message: Any) -> None:
    """Queue a message; to a process that is gone it is lost."""
    body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    writer.write(_LENGTH.pack(len(body)) + body)


def portable(error: Exception) -> Exception:
    """The error itself if it survives pickling, else one that says the same."""
    try:
        again = pickle.loads(pickle.dumps(error))
    except Exception:
        again = None
    return error if type(again) is type(error) else RuntimeError(f"{type(error).__name__}: {error}")
