"""Looking at training runs from outside, and waiting for them."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from supertiny.train.checkpoints import CHECKPOINT, step_of


def finished_checkpoints(root: Path, name: str = "distill") -> list[int]:
    """The steps of an unfinished stage that can be gone on from."""
    return sorted(step_of(note.parent) for note in root.glob(f".{name}.*.partial/.train/workers/step-*/{CHECKPOINT}"))


def training_workers() -> list[psutil.Process]:
    """The processes of all training workers below this one: Ray was started here."""
    return [process for process in psutil.Process().children(recursive=True) if "RayTrainWorker" in name_of(process)]


def name_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def wait_for(condition: Callable[[], Any], driver: subprocess.Popen[bytes] | None = None, limit_seconds: float = 150) -> None:
    deadline = time.monotonic() + limit_seconds
    while not condition():
        assert driver is None or driver.poll() is None, "the driver ended by itself"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
