"""The rollout job as a process that a test can watch and kill."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from supertiny.rollout.blocks import finished_ids


def start_job(checkout: Path, config: Path, log: Path, address: str = "local") -> subprocess.Popen[bytes]:
    """`jobs/rollout.py` on a running Ray, or with one of its own, of as many logical CPUs as the machine has cores."""
    path = os.pathsep.join([str(checkout / "platform"), str(checkout / "tests")])
    command = [sys.executable, str(checkout / "jobs" / "rollout.py"), "--config", str(config)]
    with log.open("ab") as file:
        return subprocess.Popen(
            command, env={**os.environ, "PYTHONPATH": path, "RAY_ADDRESS": address}, stdout=file, stderr=file, start_new_session=True
        )


def asked(root: Path) -> Counter[str]:
    """How often `TinyTask` was asked for each prompt."""
    return Counter(line.split()[0] for line in (root / "asked").read_text().splitlines())


def wait_for_block_of(engine: int, root: Path) -> None:
    """Until this engine has begun a block: the prompts that it is asked next are not finished for as long as `TinyTask` waits."""
    before = _asked_of(engine, root)
    for _ in range(1200):
        if _asked_of(engine, root) > before:
            return
        time.sleep(0.05)
    raise AssertionError("this engine was asked nothing within a minute")


def _asked_of(engine: int, root: Path) -> int:
    return sum(line.endswith(f" {engine}") for line in (root / "asked").read_text().splitlines())


def wait_for_blocks(job: subprocess.Popen[bytes], root: Path, num_rows: int) -> set[str]:
    """Ids in finished blocks once there are `num_rows` of them."""
    for _ in range(1200):
        done = next(root.glob(".rollouts.*.partial/.done"), None)
        ids = finished_ids(done) if done else set()
        if len(ids) >= num_rows:
            return ids
        assert job.poll() is None, "the job ended before it could be killed"
        time.sleep(0.1)
    raise AssertionError("no blocks within two minutes")
