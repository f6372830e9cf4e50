"""The metrics file of a training run."""

from __future__ import annotations

import json
from pathlib import Path


def keep_until(path: Path, step: int) -> None:
    """Drop the lines after a step, which a resumed run writes again, and a last line that was cut short."""
    if not path.exists():
        return
    kept = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n") and json.loads(line)["step"] <= step]
    path.write_text("".join(kept))


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Every step's metrics, in order."""
    return [json.loads(line) for line in path.read_text().splitlines()]
