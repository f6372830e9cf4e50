"""What a router counts and times, exported by Ray for Prometheus."""

from __future__ import annotations

from typing import Any, Literal

from ray.serve import metrics

from supertiny.records import Usage
from supertiny.serving.meter import Meter

_SECONDS = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60]
_TOKEN_SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1]


class ServeMeter(Meter):
    """The same, exported by Ray as `ray_supertiny_serving_…`; made inside a replica, whose tags it takes."""

    def __init__(self) -> None:
        super().__init__()
        self._in_flight = _gauge("in_flight", "Requests that an arm has not finished")
        self._requests = _counter("requests_total", "Requests that are over", "arm", "assignment", "status")
        self._refusals = _counter("refusals_total", "Requests that came to no arm", "reason", "key")
        self._tokens = _counter("tokens_total", "Tokens of all model calls", "arm", "kind")
        self._shadow = _counter("shadow_total", "Copies for the other arm", "outcome")
        self._cascade = _counter("cascade_total", "Cascades by what decided them", "outcome")
        self._whole = _histogram("request_seconds", "From the request to the end of its answer", _SECONDS)
        self._first = _histogram("first_token_seconds", "From the request to the first piece of a streamed answer", _SECONDS)
        self._token = _histogram("token_seconds", "Seconds of an answer by its completion tokens", _TOKEN_SECONDS)

    def asked(self, arm: str, change: Literal[1, -1]) -> None:
        """One request more, or fewer, at an arm."""
        super().asked(arm, change)
        self._in_flight.set(self.in_flight[arm], {"arm": arm})

    def answered(self, arm: str, assignment: str, status: int, seconds: float) -> None:
        """A request is over."""
        super().answered(arm, assignment, status, seconds)
        self._requests.inc(tags={"arm": arm, "assignment": assignment, "status": str(status)})
        self._whole.observe(seconds, {"arm": arm})

    def refused(self, reason: str, key: str = "") -> None:
        """A request came to no arm."""
        super().refused(reason, key)
        self._refusals.inc(tags={"reason": reason, "key": key})

    def first_token(self, arm: str, seconds: float) -> None:
        """From the request to the first piece of a streamed answer."""
        self._first.observe(seconds, {"arm": arm})

    def spent(self, arm: str, usage: Usage, seconds: float) -> None:
        """Tokens of an answer, and how long the arm took for it."""
        super().spent(arm, usage, seconds)
        for kind in ("prompt", "cached", "completion"):
            if tokens := getattr(usage, f"{kind}_tokens"):
                self._tokens.inc(tokens, {"arm": arm, "kind": kind})
        if usage.completion_tokens:
            self._token.observe(seconds / usage.completion_tokens, {"arm": arm})

    def shadow(self, outcome: str) -> None:
        """What became of a copy."""
        super().shadow(outcome)
        self._shadow.inc(tags={"outcome": outcome})

    def cascade(self, outcome: str) -> None:
        """What decided a cascade."""
        super().cascade(outcome)
        self._cascade.inc(tags={"outcome": outcome})


def _gauge(name: str, description: str) -> Any:
    return metrics.Gauge(f"supertiny_serving_{name}", description, ("arm",))


def _counter(name: str, description: str, *tags: str) -> Any:
    keys: Any = tags  # Ray's annotation says one tag, its code takes any number
    return metrics.Counter(f"supertiny_serving_{name}", description, keys)


def _histogram(name: str, description: str, boundaries: list[float]) -> Any:
    return metrics.Histogram(f"supertiny_serving_{name}", description, boundaries, ("arm",))
