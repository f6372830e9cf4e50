"""All finished blocks in prompt order, a few of them at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from supertiny.errors import CorruptArtifact
from supertiny.records import Completion, Prompt, Rollout, Verdict
from supertiny.rollout.blocks import finished_ids, write_rows
from supertiny.rollout.gather import in_order, whole_groups
from supertiny.rollout_table import write_rollouts

IDS = [f"p{at}/{index}" for at in range(6) for index in range(2)]


def write_block(folder: Path, name: str, places: Sequence[int], text: str = "") -> Path:
    """A block with the rollouts of some places of IDS."""
    rows = []
    for at in places:
        prompt = Prompt(id=IDS[at].partition("/")[0], messages=[])
        verdict = Verdict(accepted=True, score=1)
        rows.append(
            Rollout(rollout_id=IDS[at], index=at % 2, prompt=prompt, tools=[], completion=Completion(text=text), verdict=verdict, seconds=0)
        )
    write_rollouts(folder / f"{name}.parquet", rows)
    return folder / f"{name}.parquet"


def test_blocks_in_any_order_and_over_each_other_come_out_in_the_prompts_order(tmp_path: Path) -> None:
    blocks = [
        write_block(tmp_path, name, places) for name, places in {"a": [5, 4, 8], "b": [9, 10, 11], "c": [0, 1, 3], "d": [2, 6, 7]}.items()
    ]
    assert [row.rollout_id for row in in_order(blocks, IDS)] == IDS


def test_a_rollout_in_two_blocks_is_taken_once(tmp_path: Path) -> None:
    blocks = [write_block(tmp_path, "a", range(8)), write_block(tmp_path, "b", range(2, 12), text="again")]
    rows = list(in_order(blocks, IDS))
    assert [row.rollout_id for row in rows] == IDS
    assert [row.completion.text for row in rows] == [""] * 8 + ["again"] * 4


def test_no_more_blocks_are_held_than_lie_over_each_other(tmp_path: Path) -> None:
    blocks = [write_block(tmp_path, str(at), [at, at + 1]) for at in range(0, 12, 2)]
    rows = in_order(blocks, IDS)
    next(rows)
    for path in blocks[1:]:
        path.write_bytes(b"")
    assert next(rows).rollout_id == IDS[1]
    with pytest.raises(CorruptArtifact, match="cannot be read as Parquet"):
        next(rows)


def test_what_is_missing_or_was_not_asked_for_is_named_before_anything_comes_out(tmp_path: Path) -> None:
    blocks = [write_block(tmp_path, "a", range(11))]
    with pytest.raises(CorruptArtifact, match=r"1 missing \(p5/1\)"):
        next(in_order(blocks, IDS))
    with pytest.raises(CorruptArtifact, match=r"1 not asked for \(p5/0\)"):
        next(in_order(blocks, IDS[:10]))
    with pytest.raises(CorruptArtifact, match="12 missing"):
        next(in_order([], IDS))


def test_groups_are_never_cut(tmp_path: Path) -> None:
    rows = list(in_order([write_block(tmp_path, "a", range(12))], IDS))
    assert [[row.rollout_id for row in chunk] for chunk in whole_groups(rows, 4)] == [IDS[:8], IDS[8:]]
    assert [len(chunk) for chunk in whole_groups(rows, 3)] == [6, 6]
    assert [len(chunk) for chunk in whole_groups(rows, None)] == [12]


def test_rows_to_be_made_are_written_in_place_of_the_last_attempts(tmp_path: Path) -> None:
    prompt = Prompt(id="p", messages=[{"role": "user", "content": "\ud800"}])
    assert write_rows([("p/0", 0, prompt)], tmp_path / "rows") == 1
    assert write_rows([(f"p/{index}", index, prompt) for index in range(25_000)], tmp_path / "rows") == 25_000
    assert len(finished_ids(tmp_path / "rows")) == 25_000
    assert write_rows([], tmp_path / "rows") == 0
    assert finished_ids(tmp_path / "rows") == set()
