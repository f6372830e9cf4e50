"""The demo's client: real requests over HTTP, and what each arm cost and how long it took.

Two phases. *Alone*: one arm after the other gets the machine to itself, many requests in flight; price times seconds gives its cost.
*Mixed*: sessions ask for `auto`, both arms at work side by side; that gives latency, failures and the split.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from supertiny.cost import MachinePrice, usd_per_thousand
from supertiny.errors import MissingInput
from supertiny.records import Prompt, Record
from supertiny.serving.headers import ARM_HEADER, SESSION_HEADER
from supertiny.serving.stream import JsonObject, answer_text
from supertiny.tasks.base import Task

_STREAM_EVERY = 4
"""Every fourth request is streamed."""
_SESSION_REQUESTS = 3
"""Requests a session."""
_TIMEOUT_SECONDS = 60


class Latency(Record):
    """Seconds from a request to the end of its answer."""

    p50: float
    p95: float


class ArmTraffic(Record):
    """What one arm did."""

    requests: int
    """Those of the mixed phase."""
    failed: int
    """Of them, without a whole answer."""
    correct_fraction: float | None
    """Accepted by the verifier, of the answered ones whose reference is known."""
    latency_seconds: Latency | None
    """Of the answered ones, the other arm at work on the same machine."""
    usd_per_thousand_requests: float | None
    """From the phase alone: the whole machine's price for as long as the requests took."""
    alone_requests: int
    alone_failed: int
    alone_seconds: float
    alone_latency_seconds: Latency | None


class TrafficReport(Record):
    """Both arms under the same traffic."""

    control: ArmTraffic
    """The teacher pipeline."""
    treatment: ArmTraffic
    """The student; all zeros where none is served."""
    sessions: int
    moved_sessions: int
    """Sessions that saw both arms: the split is sticky, so 0."""
    unreachable: int
    """Requests of the mixed phase that no arm answered for, not even with an error."""
    concurrency: int
    """Requests in flight in the mixed phase."""
    alone_concurrency: int
    """Requests in flight in the phase alone."""
    cost_basis: str


@dataclass(frozen=True)
class Outcome:
    """One request: which arm answered, how long it took, and whether it was right (None: failed, or nobody knows)."""

    session: str
    arm: str | None
    ok: bool
    seconds: float
    correct: bool | None


def measure(
    url: str,
    prompts: Sequence[Prompt],
    task: Task,
    price: MachinePrice,
    *,
    requests: int = 300,
    concurrency: int = 4,
    alone_requests: int = 120,
    alone_concurrency: int = 16,
) -> TrafficReport:
    """Both arms of the application at `url` under `requests` to `auto`, after `alone_requests` to each by itself.

    Raises:
        MissingInput: nothing answers at `url`.
    """
    return asyncio.run(_measure(url, list(prompts), task, price, requests, concurrency, alone_requests, alone_concurrency))


async def _measure(
    url: str,
    prompts: list[Prompt],
    task: Task,
    price: MachinePrice,
    requests: int,
    concurrency: int,
    alone_requests: int,
    alone_concurrency: int,
) -> TrafficReport:
    limits = httpx.Limits(max_connections=max(concurrency, alone_concurrency))
    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_SECONDS, limits=limits, trust_env=False) as client:
        models = await _models(client)
        alone: dict[str, tuple[list[Outcome], float]] = {}
        for model in (name for name in ("student", "teacher") if name in models):
            await _send(client, model, prompts[:alone_concurrency], task, alone_concurrency)  # warm: first requests compile and cache
            alone[model] = await _send(client, model, _take(prompts, alone_requests), task, alone_concurrency)
        mixed, _ = await _send(client, "auto", _take(prompts, requests), task, concurrency)
    return TrafficReport(
        control=_arm("teacher", mixed, alone, price),
        treatment=_arm("student", mixed, alone, price),
        sessions=len({outcome.session for outcome in mixed}),
        moved_sessions=_moved(mixed),
        unreachable=sum(outcome.arm is None for outcome in mixed),
        concurrency=concurrency,
        alone_concurrency=alone_concurrency,
        cost_basis=f"price of {price.machine} x wall seconds of the arm alone at {alone_concurrency} requests in flight / requests",
    )


async def _models(client: httpx.AsyncClient) -> list[str]:
    try:
        answer = await client.get("/v1/models")
        return [model["id"] for model in answer.raise_for_status().json()["data"]]
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise MissingInput(f"{client.base_url}: no application answers there ({type(error).__name__}); serve it first") from None


async def _send(
    client: httpx.AsyncClient, model: str, prompts: Sequence[Prompt], task: Task, concurrency: int
) -> tuple[list[Outcome], float]:
    """Outcomes of all prompts, so many in flight at a time, and the seconds they took together."""
    waiting = iter(enumerate(prompts))
    outcomes: list[Outcome] = []

    async def work() -> None:
        for index, prompt in waiting:
            outcomes.append(await _ask(client, model, prompt, task, index))

    started = time.monotonic()
    await asyncio.gather(*(work() for _ in range(concurrency)))
    return outcomes, time.monotonic() - started


async def _ask(client: httpx.AsyncClient, model: str, prompt: Prompt, task: Task, index: int) -> Outcome:
    session = f"session-{index // _SESSION_REQUESTS}"
    body = {"model": model, "messages": prompt.messages, "stream": index % _STREAM_EVERY == 0}
    arm, message = None, None
    started = time.monotonic()
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body, headers={SESSION_HEADER: session}) as answer:
            arm = answer.headers.get(ARM_HEADER)
            answer.raise_for_status()
            message = await (joined(answer.aiter_lines()) if body["stream"] else _whole(answer))
    except (httpx.HTTPError, ValueError, KeyError):
        pass  # counted: an outcome without a message failed
    seconds = time.monotonic() - started
    known = message is not None and prompt.reference is not None
    correct = task.verify(prompt, answer_text(message or {})).accepted if known else None
    return Outcome(session, arm, message is not None, seconds, correct)


async def _whole(answer: httpx.Response) -> JsonObject:
    message: JsonObject = json.loads(await answer.aread())["choices"][0]["message"]
    return message


async def joined(lines: AsyncIterator[str]) -> JsonObject:
    """The message that a stream of events adds up to.

    Raises:
        ValueError: it broke off before `[DONE]`, or with an error event.
    """
    content, last = "", ""
    tool_calls: list[JsonObject] = []
    async for line in lines:
        if not line.startswith("data: "):
            continue
        last = line.removeprefix("data: ")
        event: Any = {"choices": []} if last == "[DONE]" else json.loads(last)
        if "error" in event:
            raise ValueError(event["error"]["message"])
        for choice in event["choices"]:
            content += choice["delta"].get("content") or ""
            tool_calls += choice["delta"].get("tool_calls") or []
    if last != "[DONE]":
        raise ValueError("the stream broke off")
    return {"role": "assistant", "content": content or None, "tool_calls": tool_calls}


def _arm(name: str, mixed: Iterable[Outcome], alone: dict[str, tuple[list[Outcome], float]], price: MachinePrice) -> ArmTraffic:
    outcomes = [outcome for outcome in mixed if outcome.arm == name]
    by_itself, seconds = alone.get(name, ([], 0.0))
    answered = sum(outcome.ok for outcome in by_itself)
    known = [outcome.correct for outcome in outcomes if outcome.correct is not None]
    return ArmTraffic(
        requests=len(outcomes),
        failed=sum(not outcome.ok for outcome in outcomes),
        correct_fraction=sum(known) / len(known) if known else None,
        latency_seconds=_latency(outcomes),
        usd_per_thousand_requests=usd_per_thousand(seconds / answered, price) if answered else None,
        alone_requests=len(by_itself),
        alone_failed=len(by_itself) - answered,
        alone_seconds=seconds,
        alone_latency_seconds=_latency(by_itself),
    )


def _latency(outcomes: Iterable[Outcome]) -> Latency | None:
    seconds = sorted(outcome.seconds for outcome in outcomes if outcome.ok)
    return Latency(p50=nearest_rank(seconds, 0.5), p95=nearest_rank(seconds, 0.95)) if seconds else None


def nearest_rank(ordered: Sequence[float], fraction: float) -> float:
    """The smallest of sorted values that at least `fraction` of them do not exceed."""
    rank = -int(-fraction * len(ordered) // 1)  # rounded up
    return ordered[max(rank, 1) - 1]


def _moved(outcomes: Iterable[Outcome]) -> int:
    arms = defaultdict(set)
    for outcome in outcomes:
        arms[outcome.session].add(outcome.arm)
    return sum(len(seen - {None}) > 1 for seen in arms.values())


def _take(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    return list(itertools.islice(itertools.cycle(prompts), count))
