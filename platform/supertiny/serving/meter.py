"""What a router counts."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from supertiny.records import Usage


class Meter:
    """Counts of one router since it started, for `/admin/status`; times go nowhere."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.in_flight: Counter[str] = Counter()
        """Requests that an arm has been asked and has not finished: in its queue or in its engine."""

    def asked(self, arm: str, change: Literal[1, -1]) -> None:
        """One request more, or fewer, at an arm."""
        self.in_flight[arm] += change

    def answered(self, arm: str, assignment: str, status: int, seconds: float) -> None:
        """A request is over."""
        self.counts[f"requests {arm} {assignment} {status}"] += 1

    def refused(self, reason: str, key: str = "") -> None:
        """A request came to no arm; `key` names whose it was, where its key is why."""
        self.counts[f"refusals {reason} {key}".rstrip()] += 1

    def first_token(self, arm: str, seconds: float) -> None:
        """From the request to the first piece of a streamed answer."""

    def spent(self, arm: str, usage: Usage, seconds: float) -> None:
        """Tokens of an answer, and how long the arm took for it."""
        self.counts[f"tokens {arm} completion"] += usage.completion_tokens
        self.counts[f"tokens {arm} prompt"] += usage.prompt_tokens

    def shadow(self, outcome: str) -> None:
        """What became of a copy: `same`, `different`, `incomparable`, `failed` or `dropped`."""
        self.counts[f"shadow {outcome}"] += 1

    def cascade(self, outcome: str) -> None:
        """What decided a cascade: `kept`, or why the teacher was asked."""
        self.counts[f"cascade {outcome}"] += 1
