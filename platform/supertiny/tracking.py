"""Metrics by step, one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol


class Tracker(Protocol):
    """Takes a stage's metrics as they come."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics of one step."""


class JsonlTracker:
    """Appends `{"step": …, metric: value, …}` lines to a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics of one step."""
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")


class MemoryTracker:
    """Keeps the records, for tests."""

    def __init__(self) -> None:
        self.records: list[dict[str, float]] = []

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics of one step."""
        self.records.append({"step": step, **metrics})
