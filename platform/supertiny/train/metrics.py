"""A training run's metrics: the file of every step, and the check that they are numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path

from supertiny.errors import NotFinite


def keep_until(path: Path, step: int) -> None:
    """Drop the lines after a step, which a resumed run writes again, and a last line that was cut short."""
    if not path.exists():
        return
    kept = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n") and json.loads(line)["step"] <= step]
    path.write_text("".join(kept))


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Every step's metrics, in order."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def check_finite(metrics: dict[str, float], rollout_ids: list[str]) -> None:
    """Raise where one of a step's metrics is not a number.

    Raises:
        NotFinite: with the rollouts of the batch.
    """
    wrong = [name for name, value in metrics.items() if not math.isfinite(value)]
    if wrong:
        raise NotFinite(
            f"{' and '.join(wrong)} not finite in a batch of the rollouts {', '.join(rollout_ids)}; "
            "look at these rows, or lower learning_rate"
        )
