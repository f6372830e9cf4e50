"""A day of requests in compressed time: how many come when, what became of them, and its picture."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from tests.serving.load import Sent, persistent

PATIENCE_SECONDS = 60
"""Of a client, over all tries; what has no answer then has failed."""


@dataclass(frozen=True)
class Day:
    """Simulated hours, each `hour_seconds` long.

    Args:
        lowest, highest: requests a real second, at 4 and at 16 o'clock.
    """

    hours: float
    hour_seconds: float
    lowest: float
    highest: float

    @property
    def seconds(self) -> float:
        return self.hours * self.hour_seconds

    def rate(self, seconds: float) -> float:
        """Requests a second, so long after midnight."""
        share = (1 - math.cos(2 * math.pi * (seconds / self.hour_seconds - 4) / 24)) / 2
        return self.lowest + (self.highest - self.lowest) * share

    def minutes(self, seconds: float) -> float:
        """Simulated minutes."""
        return 60 * seconds / self.hour_seconds


@dataclass
class Fleet:
    """How many nodes there were and when, and which were lost: seconds since midnight."""

    nodes: list[tuple[float, int]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def node_seconds(self) -> float:
        """What would be paid for."""
        return sum(nodes * (then - at) for (at, nodes), (then, _) in zip(self.nodes, self.nodes[1:], strict=False))


@contextmanager
def load(url: str, day: Day, again: int) -> Iterator[list[Sent]]:
    """Requests at the day's rate, answered or not, a tenth of them streams; the list is whole after the block, which waits for the day."""
    sent: list[Sent] = []
    thread = threading.Thread(target=lambda: asyncio.run(_live(url, day, again, sent)))
    thread.start()
    try:
        yield sent
    finally:
        thread.join()


@contextmanager
def every(seconds: float, act: Callable[[], None]) -> Iterator[None]:
    """Do something again and again beside the block, first after one period."""
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(seconds):
            act()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def plot(path: Path, day: Day, fleet: Fleet, sent: Sequence[Sent], midnight: float) -> None:
    """Requests and failures by simulated quarter of an hour, nodes below, the losses marked."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 4.5), sharex=True)
    hours = [(each.at - midnight) / day.hour_seconds for each in sent]
    bins = [at / 4 for at in range(int(4 * day.hours) + 1)]
    above.hist(hours, bins, color="lightgrey", label="requests")
    above.hist([at for at, each in zip(hours, sent, strict=True) if each.tries > 1], bins, color="orange", label="sent again")
    above.hist([at for at, each in zip(hours, sent, strict=True) if not each.whole], bins, color="red", label="failed")
    below.step([at / day.hour_seconds for at, _ in fleet.nodes], [nodes for _, nodes in fleet.nodes], where="post")
    for at in fleet.losses:
        below.axvline(at / day.hour_seconds, color="red", linewidth=0.5, linestyle=":")
    above.set(ylabel="in 15 minutes", title=f"{day.hours:g} simulated hours, a node lost every 30 minutes (dotted)")
    below.set(xlabel="hour", ylabel="nodes", ylim=(0, None))
    above.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


async def _live(url: str, day: Day, again: int, sent: list[Sent]) -> None:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits, trust_env=False) as client, asyncio.TaskGroup() as group:

        async def ask(index: int) -> None:
            unanswered = Sent(streamed=index % 10 == 0, seconds=PATIENCE_SECONDS)
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    sent.append(await persistent(client, streamed=unanswered.streamed, again=again))
            except TimeoutError:
                sent.append(unanswered)

        start, due, index = time.monotonic(), 0.0, 0
        while due < day.seconds:
            await asyncio.sleep(max(start + due - time.monotonic(), 0))
            group.create_task(ask(index))
            due, index = due + 1 / day.rate(due), index + 1
