"""How training went: the metrics by step that a stage left in its artifact, thinned for the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from supertiny.evaluate.schema import Curves

METRICS = "metrics.jsonl"
POINTS = 200
"""Most points of a curve; beyond, each is the mean of several steps."""
NO_CURVES = ("step", "tokens", "seconds", "validation_seconds")


def read_curves(folder: Path) -> Curves | None:
    """An artifact's curves; None where it has no metrics by step."""
    path = folder / METRICS
    history = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return thin(history) if history else None


def thin(history: Sequence[dict[str, float]], points: int = POINTS) -> Curves:
    """Means over stretches of steps, at the last step of each; a metric that a stretch has not is None there."""
    size = -(-len(history) // points)
    stretches = [history[start : start + size] for start in range(0, len(history), size)]
    names = dict.fromkeys(name for line in history for name in line if name not in NO_CURVES)
    return Curves(
        steps=[int(stretch[-1]["step"]) for stretch in stretches],
        metrics={name: [_mean([line[name] for line in stretch if name in line]) for stretch in stretches] for name in names},
    )


def _mean(values: Sequence[float]) -> float | None:
    return float(f"{fmean(values):.5g}") if values else None
