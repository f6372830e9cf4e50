"""`jobs/pipeline.py` in minutes, as a process that a test can watch and kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SMALL: dict[str, Any] = {
    "rollout.limit": 160,
    "rollout.layout.block_rows": 16,
    "rollout.layout.blocks_in_flight": 2,
    "distill.epochs": 3,
    "distill.batch": 16,
    "distill.micro_batch": 8,
    "distill.checkpoint_every_steps": 5,
    "rl.steps": 2,
    "heal.epochs": 1,
    "recover.max_rounds": 0,
    "awq.num_rows": 16,
    "w8a8.num_rows": 16,
    "evaluate.num_prompts": 120,
    "evaluate.latency_prompts": 8,
    "pareto.rounds": 1,
    "pareto.num_prompts": 4,
    "pareto.max_tokens": 32,
    "gate.min_prompts": 100,
    "gate.margin": 0.9,  # the chain is under test here, not how good so short a training is
}


class Driver:
    """`jobs/pipeline.py` as a process of its own, on a running Ray."""

    def __init__(self, checkout: Path, run_root: Path, log: Path, address: str, *overrides: str) -> None:
        settings = [f"run_root={run_root}", *(f"{key}={value}" for key, value in SMALL.items()), *overrides]
        command = [sys.executable, "jobs/pipeline.py", *(part for setting in settings for part in ("--set", setting))]
        environment = {**os.environ, "RAY_ADDRESS": address}
        self._log = log
        with log.open("w") as output:
            self._process = subprocess.Popen(command, cwd=checkout, env=environment, stdout=output, stderr=subprocess.STDOUT)

    def kill_when(self, condition: Callable[[], Any], limit_seconds: float = 400) -> str:
        """SIGKILL as soon as `condition` holds; returns the log."""
        deadline = time.monotonic() + limit_seconds
        while not condition():
            assert self._process.poll() is None, f"ended by itself:\n{self._log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"waited in vain:\n{self._log.read_text()[-3000:]}"
            time.sleep(0.05)
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        return self._log.read_text()

    def finish(self, limit_seconds: float = 600) -> tuple[int, str]:
        """Exit status and log."""
        status = self._process.wait(limit_seconds)
        return status, self._log.read_text()
