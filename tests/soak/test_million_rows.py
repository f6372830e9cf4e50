"""A million short rows through the rollout's graph on this machine: `make soak`. A scripted engine answers at once."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from rollout_jobs import start_job

from supertiny.rollout.blocks import finished_names

SIZES = (10_000, 100_000, 1_000_000)
BLOCK = 1000
CONFIG = """
run_root = "{root}"
group_size = 1

[task]
path = "short_task:ShortTask"
options = {{ num_prompts = {rows} }}

[scripted]

[layout]
block_rows = {block}
blocks_in_flight = 3
"""


@dataclass(frozen=True)
class Sample:
    """The driver at one moment: seconds since its start, rows finished, resident bytes."""

    seconds: float
    rows: int
    bytes: int


def watched(checkout: Path, root: Path, rows: int) -> list[Sample]:
    """A rollout of so many rows in a folder, seen once a second from its start to its end."""
    root.mkdir()
    config, log = root / "rollout.toml", root / "log"
    config.write_text(CONFIG.format(root=root, rows=rows, block=BLOCK))
    job = start_job(checkout, config, log)
    began, samples, made = time.monotonic(), [], 0
    try:
        while job.poll() is None:
            done = next(root.glob(".rollouts.*.partial/.done"), None)
            made = max(made, BLOCK * len(finished_names(done))) if done else made  # its folder is removed at the end
            samples.append(Sample(time.monotonic() - began, made, resident(job.pid)))
            time.sleep(1)
    finally:
        job.kill()
    assert job.returncode == 0, log.read_text()[-3000:]
    return samples


def resident(pid: int) -> int:
    """Bytes of a process in memory, 0 once it has ended."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def figures(samples: list[Sample], rows: int) -> dict[str, float]:
    """What is printed and judged: MiB of the driver and seconds, while rows are made and until the table is published."""
    first = next(sample for sample in samples if sample.rows)
    quarter = next(sample for sample in samples if sample.rows >= rows / 4)
    last = next(sample for sample in samples if sample.rows == samples[-1].rows)
    return {
        "rows": rows,
        "mib_at_a_quarter": quarter.bytes / 2**20,
        "mib_at_the_last_row": last.bytes / 2**20,
        "mib_at_most": max(sample.bytes for sample in samples) / 2**20,
        "rows_per_second": (rows - first.rows) / max(last.seconds - first.seconds, 1),
        "seconds": samples[-1].seconds,
        "seconds_to_publish": samples[-1].seconds - last.seconds,
        "seconds_per_thousand_rows": 1000 * samples[-1].seconds / rows,
    }


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_the_drivers_memory_stays_flat_and_the_cost_of_a_row_does_not_grow(tmp_path: Path, checkout: Path) -> None:
    found = {}
    for rows in SIZES:
        root = tmp_path / str(rows)
        found[rows] = figures(watched(checkout, root, rows), rows)
        print("\n" + json.dumps({name: round(value, 3) for name, value in found[rows].items()}), flush=True)
        ledger = json.loads((root / "rollouts" / "ledger.json").read_text())
        assert (ledger["rollouts"], ledger["accepted"]) == (rows, rows)
    smaller, largest = found[SIZES[1]], found[SIZES[2]]
    assert largest["mib_at_the_last_row"] < 1.1 * largest["mib_at_a_quarter"] + 50
    assert largest["seconds_per_thousand_rows"] < 1.5 * smaller["seconds_per_thousand_rows"]
