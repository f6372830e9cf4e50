"""A running rollout as Prometheus metrics through Ray: what the driver sees in finished blocks, so each row once.

Ray puts `ray_` before a name and `_total` behind that of a counter. Every metric has the tag `rollouts`, the artifact's name.
"""

from __future__ import annotations

from collections.abc import Iterator

from ray.util import metrics as ray_metrics

from supertiny.rollout.progress import Tally
from supertiny.rollout.spending import Spending

Key = tuple[str, tuple[tuple[str, str], ...]]
"""A metric's name and its tags."""
COUNTERS = {
    "supertiny_rollout_rows_done": ("Rollouts in finished blocks.", ()),
    "supertiny_rollout_rows_accepted": ("Those accepted, before the filters that need whole groups.", ()),
    "supertiny_rollout_rows_rejected": ("Those rejected.", ("reason",)),
    "supertiny_rollout_calls": ("Model calls.", ("step",)),
    "supertiny_rollout_tokens": ("Tokens; cached ones are prompt tokens too.", ("step", "kind")),
    "supertiny_rollout_engine_seconds": ("Busy seconds of the engines.", ("step",)),
}
GAUGES = {
    "supertiny_rollout_usd": ("Dollars so far, over all attempts, by what for.", ("kind",)),
    "supertiny_rollout_budget_usd": ("Dollars after which the rollout stops, where it has such a budget.", ()),
    "supertiny_rollout_rows_left": ("Rollouts still to be made.", ()),
    "supertiny_rollout_seconds_left": ("Seconds until they are made, at the speed so far.", ()),
}
ROW_SECONDS = "supertiny_rollout_row_seconds"
_BOUNDARIES = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]


class RayMetrics:
    """The metrics of one rollout, told again and again; needs no Ray to be made, and goes nowhere without one."""

    def __init__(self, name: str) -> None:
        self._tags = {"rollouts": name}
        self.told: dict[Key, float] = {}
        make = {**dict.fromkeys(COUNTERS, ray_metrics.Counter), **dict.fromkeys(GAUGES, ray_metrics.Gauge)}
        described = {**COUNTERS, **GAUGES}
        self._metrics = {
            metric: kind(metric, described[metric][0], ("rollouts", *described[metric][1])).set_default_tags(self._tags)
            for metric, kind in make.items()
        }
        said = "Seconds from a rollout's first call to its answer, others in flight."
        self._row_seconds = ray_metrics.Histogram(ROW_SECONDS, said, _BOUNDARIES, ("rollouts",)).set_default_tags(self._tags)

    def tell(self, tally: Tally, spending: Spending, total: int) -> None:
        """What changed since the last time; `total` is how many rollouts this attempt makes."""
        for (metric, tags), value in counts(tally).items():
            if (more := value - self.told.get((metric, tags), 0.0)) > 0:
                self._metrics[metric].inc(more, {**self._tags, **dict(tags)})
                self.told[metric, tags] = value
        for (metric, tags), value in gauges(tally, spending, total):
            self._metrics[metric].set(value, {**self._tags, **dict(tags)})
        for seconds in tally.take_row_seconds():
            self._row_seconds.observe(seconds)


def counts(tally: Tally) -> dict[Key, float]:
    """The counters' values since this attempt began."""
    found: dict[Key, float] = {("supertiny_rollout_rows_done", ()): tally.rollouts, ("supertiny_rollout_rows_accepted", ()): tally.accepted}
    for reason, rows in tally.rejected.items():
        found["supertiny_rollout_rows_rejected", (("reason", reason),)] = rows
    for name, step in tally.steps.items():
        found["supertiny_rollout_calls", (("step", name),)] = step.usage.calls
        found["supertiny_rollout_engine_seconds", (("step", name),)] = step.engine_seconds
        for kind in ("prompt", "cached", "completion"):
            found["supertiny_rollout_tokens", (("step", name), ("kind", kind))] = getattr(step.usage, f"{kind}_tokens")
    return found


def gauges(tally: Tally, spending: Spending, total: int) -> Iterator[tuple[Key, float]]:
    """The gauges' values now; no time left is told while none is known."""
    yield ("supertiny_rollout_usd", (("kind", "reserved"),)), spending.usd - spending.endpoint_usd
    yield ("supertiny_rollout_usd", (("kind", "endpoint"),)), spending.endpoint_usd
    if spending.budget_usd is not None:
        yield ("supertiny_rollout_budget_usd", ()), spending.budget_usd
    yield ("supertiny_rollout_rows_left", ()), total - tally.rollouts
    if tally.rollouts:
        yield ("supertiny_rollout_seconds_left", ()), tally.seconds_left(total)
