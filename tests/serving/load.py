"""Many clients of a served application at once, and what became of every request."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import httpx
import psutil

from supertiny.serving.traffic import nearest_rank

BODY = {"model": "student", "messages": [{"role": "user", "content": "turn on the kitchen light"}]}


@dataclass
class Sent:
    """One request."""

    streamed: bool
    status: int | None = None
    """None where the connection broke before there was one."""
    begun: bool = False
    """A first token came."""
    whole: bool = False
    retry_after: str | None = None
    seconds: float = 0.0
    tries: int = 1
    at: float = field(default_factory=time.monotonic)


@contextmanager
def clients(url: str, count: int, stream_every: int = 0, again: int = 0) -> Iterator[list[Sent]]:
    """So many clients ask one request after the other until the block ends; the list is whole after it.

    Args:
        stream_every: how often a client streams; 0 never.
        again: how often a request is sent once more whose connection broke, or which got a 5xx, before its answer began: what a load
            balancer before the nodes does (HAProxy's `retry-on all-retryable-errors`).
    """
    sent: list[Sent] = []
    stop = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(_all(url, count, stream_every, again, sent, stop)))
    thread.start()
    try:
        yield sent
    finally:
        stop.set()
        thread.join()


def burst(url: str, per_second: float, seconds: float) -> list[Sent]:
    """Requests at a rate, whether or not the earlier ones are answered."""

    async def send() -> list[Sent]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits, trust_env=False) as client, asyncio.TaskGroup() as group:
            tasks = []
            start = time.monotonic()
            for index in range(int(per_second * seconds)):
                await asyncio.sleep(max(start + index / per_second - time.monotonic(), 0))
                tasks.append(group.create_task(_ask(client, streamed=False)))
        return [task.result() for task in tasks]

    return asyncio.run(send())


def p99(sent: Sequence[Sent]) -> float:
    """Of the answered ones, seconds."""
    return nearest_rank(sorted(each.seconds for each in sent if each.whole), 0.99)


def replica_pids(deployment: str) -> list[int]:
    """Process ids of a deployment's replicas, of the Ray that this process started."""
    return _pids(f"ray::ServeReplica:supertiny:{deployment}")


def proxy_pids() -> list[int]:
    """Process ids of Serve's HTTP proxies, likewise."""
    return _pids("ray::ProxyActor")


def kill(pid: int) -> None:
    """As the kernel would when memory runs out."""
    os.kill(pid, signal.SIGKILL)


def wait_for(said: str, condition: object, seconds: float = 60) -> float:
    """How long it took until a condition held."""
    assert callable(condition)
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"waited {seconds:g} s for {said}"
        time.sleep(0.05)
    return time.monotonic() - started


async def _all(url: str, count: int, stream_every: int, again: int, sent: list[Sent], stop: threading.Event) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=count), trust_env=False) as client:
        await asyncio.gather(*(_one(client, stream_every, again, sent, stop) for _ in range(count)))


async def _one(client: httpx.AsyncClient, stream_every: int, again: int, sent: list[Sent], stop: threading.Event) -> None:
    index = 0
    while not stop.is_set():
        index += 1
        sent.append(await persistent(client, streamed=stream_every > 0 and index % stream_every == 0, again=again))
        if not sent[-1].whole:
            await asyncio.sleep(0.2)


async def persistent(client: httpx.AsyncClient, *, streamed: bool, again: int) -> Sent:
    """One request, sent up to `again` times more; its time is that of all tries."""
    first = each = await _ask(client, streamed=streamed)
    while not each.whole and not each.begun and each.tries <= again and (each.status is None or each.status >= 500):
        await asyncio.sleep(0.1 * 2**each.tries)
        each = replace(await _ask(client, streamed=streamed), tries=each.tries + 1)
    return replace(each, at=first.at, seconds=time.monotonic() - first.at)


async def _ask(client: httpx.AsyncClient, *, streamed: bool) -> Sent:
    each, text = Sent(streamed), ""
    try:
        async with client.stream("POST", "/v1/chat/completions", json={**BODY, "stream": streamed}) as answer:
            each.status, each.retry_after = answer.status_code, answer.headers.get("retry-after")
            async for part in answer.aiter_text():
                text += part
                each.begun = each.begun or '"content":"' in text.replace('"content":""', "")
    except httpx.HTTPError:
        pass  # counted: the request is not whole
    else:
        each.whole = each.status == 200 and (text.endswith("data: [DONE]\n\n") if streamed else True)
    each.seconds = time.monotonic() - each.at
    return each


def _pids(prefix: str) -> list[int]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith(prefix):
                found.append(process.pid)
        except psutil.Error:
            continue
    return sorted(found)
