"""Which blocks of a killed rollout count as finished."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from supertiny.errors import CorruptArtifact
from supertiny.records import StepUsage, Usage
from supertiny.rollout.blocks import finished_files, finished_ids
from supertiny.rollout.progress import Tally, endpoint_usd


def write_block(folder: Path, name: str, ids: list[str], *, pending: bool = False, reason: str = "", usd: float = 0.0) -> None:
    """A block as Ray Data leaves it: its rows, and its ids under a name that says whether it was cut off."""
    for part in ("blocks", "done"):
        (folder / part).mkdir(exist_ok=True)
    step = StepUsage(usage=Usage(prompt_tokens=10, completion_tokens=3), engine_seconds=0.5, endpoint_usd=usd)
    verdict = {"accepted": not reason, "reason": reason, "evidence": reason and "it rained"}
    columns = {**verdict, "seconds": 2.0, "steps": json.dumps({"answer": step.model_dump()})}
    rows = {"rollout_id": ids, **{name: [value] * len(ids) for name, value in columns.items()}}
    pq.write_table(pa.table(rows), folder / "blocks" / f"{name}-0.parquet")
    pq.write_table(pa.table({"rollout_id": ids}), folder / "done" / f"{name}{'.pending' if pending else ''}.parquet")


def test_a_block_that_was_cut_off_counts_neither_by_its_ids_nor_by_its_file(tmp_path: Path) -> None:
    write_block(tmp_path, "a_000000", ["p/0", "p/1"])
    write_block(tmp_path, "a_000001", ["q/0"], pending=True)
    assert finished_ids(tmp_path / "done") == {"p/0", "p/1"}
    assert [path.name for path in finished_files(tmp_path / "blocks", tmp_path / "done")] == ["a_000000-0.parquet"]


def test_nothing_is_finished_where_nothing_was_begun(tmp_path: Path) -> None:
    assert finished_ids(tmp_path / "done") == set()


def test_a_checkpoint_that_cannot_be_read_is_named_with_what_to_do(tmp_path: Path) -> None:
    write_block(tmp_path, "a", ["p/0"])
    (tmp_path / "done" / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(CorruptArtifact, match=r"a\.parquet cannot be read as Parquet.*remove it"):
        finished_ids(tmp_path / "done")


def test_a_tally_counts_every_finished_block_once(tmp_path: Path) -> None:
    tally = Tally(tmp_path / "blocks", tmp_path / "done")
    write_block(tmp_path, "a", ["p/0", "p/1"])
    assert (tally.update(), tally.rollouts, tally.tokens) == (1, 2, 6)
    write_block(tmp_path, "b", ["q/0"])
    write_block(tmp_path, "c", ["q/1"], pending=True)
    assert (tally.update(), tally.rollouts, tally.accepted) == (1, 3, 3)
    assert tally.steps == {"answer": StepUsage(usage=Usage(calls=3, prompt_tokens=30, completion_tokens=9), engine_seconds=1.5)}
    write_block(tmp_path, "d", ["r/0", "r/1"], reason="unlucky")
    assert (tally.update(), tally.accepted, tally.rejected) == (1, 3, {"unlucky": 2})
    assert tally.update() == 0


def test_the_first_of_every_reason_is_logged_with_its_evidence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tally = Tally(tmp_path / "blocks", tmp_path / "done")
    with caplog.at_level("INFO"):
        for name, reason in (("a", ""), ("b", "unlucky"), ("c", "unlucky"), ("d", "late")):
            write_block(tmp_path, name, [f"{name}/0", f"{name}/1"], reason=reason)
            tally.update()
    assert caplog.messages == ["the first rejected as unlucky: b/0: it rained", "the first rejected as late: d/0: it rained"]


def test_what_endpoints_took_is_read_off_the_finished_blocks(tmp_path: Path) -> None:
    write_block(tmp_path, "a", ["p/0", "p/1"], usd=0.25)
    write_block(tmp_path, "b", ["q/0"], pending=True, usd=0.25)
    assert endpoint_usd(finished_files(tmp_path / "blocks", tmp_path / "done")) == 0.5
