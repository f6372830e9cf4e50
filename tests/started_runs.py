"""A training run on started nodes, looked at from outside."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from started_nodes import Node, StartedNodes
from tiny_rollouts import assistant_tokenizer, gold_rollouts, make_student, publish_rollouts

from supertiny.artifacts import open_artifact
from supertiny.train.metrics import read_metrics

STEPS_A_PASS = 4
SETTINGS: dict[str, Any] = {
    **{"student": "base", "batch": 16, "micro_batch": 8, "learning_rate": 1e-3, "num_workers": 2},
    **{"log_every_steps": 20, "stall_seconds": 60, "max_failures": 3, "trackers": []},
}


class StartedRun:
    """`jobs/distill.py` in a folder, its driver on a node; with the same settings it goes on with what is there. Killed with the block.

    Args:
        settings: beyond `SETTINGS`.
    """

    def __init__(self, checkout: Path, root: Path, nodes: StartedNodes, where: Node, *, passes: int, **settings: Any) -> None:
        self.root = root
        if not (root / "base").exists():
            make_student(root)
            publish_rollouts(root, gold_rollouts(assistant_tokenizer(), 16 * STEPS_A_PASS))
        values = {**SETTINGS, **settings, "epochs": float(passes), "run_root": str(root)}
        (root / "distill.toml").write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
        job = [str(checkout / "jobs" / "distill.py"), "--config", str(root / "distill.toml")]
        self.driver = nodes.start_driver(where, job, root / "log")

    def __enter__(self) -> StartedRun:
        return self

    def __exit__(self, *error: object) -> None:
        if self.driver.poll() is None:
            os.killpg(self.driver.pid, signal.SIGKILL)
            self.driver.wait()

    def metrics(self) -> list[str]:
        """A line a step of the unfinished stage."""
        file = next(self.root.glob(".distill.*.partial/metrics.jsonl"), None)
        return file.read_text().splitlines() if file else []

    def steps(self) -> int:
        """The last step in them."""
        return len(self.metrics())

    def finish(self) -> list[int]:
        """The steps of the finished run's metrics."""
        assert self.driver.wait(300) == 0, (self.root / "log").read_text()[-4000:]
        return [int(row["step"]) for row in read_metrics(open_artifact("distill", str(self.root), "model").path / "metrics.jsonl")]
