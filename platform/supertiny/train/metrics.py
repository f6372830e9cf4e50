"""A training run's metrics: the file of every step, the trackers, how many steps are left, and the check that they are numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ray.util.metrics import Gauge

from supertiny.errors import NotFinite
from supertiny.tracking import Tracker, TrackerName, Trackers, open_trackers, run_name

STEPS_LEFT = "supertiny_train_steps_left"


class StepsLeft:
    """Steps still to be made, as a Prometheus metric through Ray with the tag `run`; one that stays the same is a run that hangs."""

    def __init__(self, run: str, first_step: int, num_steps: int) -> None:
        self._num_steps = num_steps
        self._gauge = Gauge(STEPS_LEFT, "Training steps still to be made.", ("run",)).set_default_tags({"run": run})
        self.log({}, first_step)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """A step that was made."""
        self._gauge.set(self._num_steps - step)

    def close(self) -> None:
        """Ray forgets it with the worker."""


def resume_trackers(names: Sequence[TrackerName], folder: Path, first_step: int, num_steps: int) -> Tracker:
    """The trackers of a run of `num_steps` in a stage's folder, where an attempt goes on after `first_step`."""
    keep_until(folder / "metrics.jsonl", first_step)
    return Trackers([open_trackers(names, folder, first_step), StepsLeft(run_name(folder), first_step, num_steps)])


def keep_until(path: Path, step: int) -> None:
    """Drop the lines after a step, which a resumed run writes again, and a last line that was cut short."""
    if not path.exists():
        return
    kept = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n") and json.loads(line)["step"] <= step]
    path.write_text("".join(kept))


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Every step's metrics, in order."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def check_finite(metrics: Mapping[str, float], what: str, ids: Iterable[str]) -> None:
    """Raise where one of a step's metrics is not a number.

    Args:
        what: `rollouts` or `prompts`.
        ids: those of the step.

    Raises:
        NotFinite: with the ids.
    """
    wrong = [name for name, value in metrics.items() if not math.isfinite(value)]
    if wrong:
        raise NotFinite(
            f"{' and '.join(wrong)} not finite in a batch of the {what} {', '.join(ids)}; look at these rows, or lower learning_rate"
        )
