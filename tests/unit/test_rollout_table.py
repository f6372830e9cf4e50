"""The rollout table keeps what it is given, and says so when it cannot."""

from __future__ import annotations

import math
import tracemalloc
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supertiny.errors import CorruptArtifact, MissingInput
from supertiny.records import Call, Completion, Prompt, Rollout, TopK, Usage, Verdict
from supertiny.rollout_table import (
    ACCEPTED,
    REJECTED,
    iter_rollouts,
    read_rejected,
    read_rollouts,
    read_table,
    to_table,
    write_rollouts,
)

TOOL = {"type": "function", "function": {"name": "set_light", "parameters": {"type": "object", "properties": {}}}}


def some_rollout(name: str = "41c0/3", token_ids: tuple[int, ...] = (5, 6, 7), top_k: TopK | None = None) -> Rollout:
    prompt_id, _, index = name.rpartition("/")
    return Rollout(
        rollout_id=name,
        index=int(index),
        prompt=Prompt(
            id=prompt_id,
            messages=[{"role": "user", "content": "licht an, bitte ☀"}],
            slice="in_scope",
            reference=[Call(name="set_light", arguments={"room": "hall", "level": 0.5, "on": True})],
        ),
        tools=[TOOL],
        completion=Completion(
            text="ok ☀",
            token_ids=list(token_ids),
            top_k=top_k,
            finish_reason="length",
            usage=Usage(calls=3, prompt_tokens=40, cached_tokens=16, completion_tokens=9),
        ),
        verdict=Verdict(accepted=True, score=0.5, reason="", evidence="seen"),
        seconds=0.25,
    )


def top_k_for(token_ids: tuple[int, ...]) -> TopK:
    return TopK(ids=[[token, token + 1] for token in token_ids], logprobs=[[math.log(0.75), math.log(0.125)] for _ in token_ids])


def test_a_rollout_comes_back_as_it_went_in_but_for_the_precision_of_its_logprobs(tmp_path: Path) -> None:
    before = [some_rollout(top_k=top_k_for((5, 6, 7))), some_rollout("41c1/0")]
    write_rollouts(tmp_path / ACCEPTED, before)
    after = read_rollouts(tmp_path)
    without = {"completion": {"top_k": {"logprobs"}}}
    assert [row.model_dump(exclude=without) for row in after] == [row.model_dump(exclude=without) for row in before]
    assert after[1].completion.top_k is None
    assert after[0].completion.top_k is not None
    assert after[0].completion.top_k.logprobs[2] == pytest.approx([math.log(0.75), math.log(0.125)], abs=0.001)


def test_a_prompt_whose_right_calls_nobody_knows_is_not_one_whose_right_answer_is_no_call(tmp_path: Path) -> None:
    rollout = some_rollout()
    unknown = rollout.model_copy(update={"prompt": rollout.prompt.model_copy(update={"reference": None})})
    nothing = rollout.model_copy(update={"prompt": rollout.prompt.model_copy(update={"reference": []})})
    write_rollouts(tmp_path / ACCEPTED, [unknown, nothing])
    assert [row.prompt.reference for row in read_rollouts(tmp_path)] == [None, []]


@settings(max_examples=30)
@given(st.lists(st.floats(min_value=-20, max_value=0), min_size=4, max_size=4))
def test_float16_keeps_logprobs_within_a_hundredth_of_a_nat(values: list[float]) -> None:
    rollout = some_rollout(token_ids=(1, 2), top_k=TopK(ids=[[1, 2], [3, 4]], logprobs=[values[:2], values[2:]]))
    stored = to_table([rollout]).column("teacher_logprobs").to_pylist()[0]
    assert max(abs(float(a) - b) for a, b in zip(stored, values, strict=True)) < 0.01


def test_the_top_100_of_152k_tokens_take_at_most_450_bytes_a_token_even_drawn_at_random(tmp_path: Path) -> None:
    draw, num_rows, num_tokens = np.random.default_rng(0), 60, 50
    rows = []
    for at in range(num_rows):
        ids = draw.integers(0, 151_936, (num_tokens, 100))
        top_k = TopK(ids=ids.tolist(), logprobs=(-draw.exponential(5.0, ids.shape)).tolist())
        rows.append(some_rollout(f"p{at}/0", tuple(ids[:, 0].tolist()), top_k))
    write_rollouts(tmp_path / ACCEPTED, rows)
    assert (tmp_path / ACCEPTED).stat().st_size <= 450 * num_rows * num_tokens
    after = read_rollouts(tmp_path)
    assert [row.completion.top_k.ids for row in after if row.completion.top_k] == [
        row.completion.top_k.ids for row in rows if row.completion.top_k
    ]


def test_the_tail_mass_is_the_probability_of_the_tokens_not_kept() -> None:
    tail_mass = to_table([some_rollout(top_k=top_k_for((5, 6, 7)))]).column("teacher_tail_mass").to_pylist()[0]
    assert tail_mass == pytest.approx([0.125, 0.125, 0.125], abs=1e-6)


def test_teacher_logprobs_for_other_tokens_than_the_completion_has_are_refused_when_written(tmp_path: Path) -> None:
    rollout = some_rollout(token_ids=(5, 6), top_k=top_k_for((5, 6, 7)))
    with pytest.raises(CorruptArtifact, match=r"rollout 41c0/3: 3 teacher logprobs for 2 completion tokens; was the same tokenizer used\?"):
        write_rollouts(tmp_path / ACCEPTED, [rollout])


def replace_column(path: Path, name: str, values: list[object]) -> None:
    table = read_table(path)
    at = table.schema.get_field_index(name)
    pq.write_table(table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type)), path)


def test_teacher_logprobs_that_went_missing_are_found_when_read(tmp_path: Path) -> None:
    write_rollouts(tmp_path / ACCEPTED, [some_rollout(top_k=top_k_for((5, 6, 7)))])
    replace_column(tmp_path / ACCEPTED, "teacher_ids", [[5, 6, 6, 7]])
    with pytest.raises(CorruptArtifact, match="rollout 41c0/3: 2 teacher logprobs for 3 completion tokens"):
        read_rollouts(tmp_path)


@pytest.mark.parametrize(("column", "value"), [("token_ids", [5, 6, 8]), ("rollout_id", "41c0/4")])
def test_token_ids_that_changed_or_belong_to_another_rollout_are_found_when_read(tmp_path: Path, column: str, value: object) -> None:
    write_rollouts(tmp_path / ACCEPTED, [some_rollout()])
    replace_column(tmp_path / ACCEPTED, column, [value])
    with pytest.raises(CorruptArtifact, match="another sha256"):
        read_rollouts(tmp_path)


def taught(count: int) -> list[Rollout]:
    return [some_rollout(f"p{at}/0", tuple(range(at, at + 20)), top_k_for(tuple(range(at, at + 20)))) for at in range(count)]


def test_part_by_part_a_table_is_the_same(tmp_path: Path) -> None:
    write_rollouts(tmp_path / ACCEPTED, [*taught(600), some_rollout("last/0")])
    assert list(iter_rollouts(tmp_path)) == read_rollouts(tmp_path)


def test_without_its_top_k_a_row_is_otherwise_the_same(tmp_path: Path) -> None:
    write_rollouts(tmp_path / ACCEPTED, taught(3))
    bare = [row.model_copy(update={"completion": row.completion.model_copy(update={"top_k": None})}) for row in read_rollouts(tmp_path)]
    assert read_rollouts(tmp_path, top_k=False) == list(iter_rollouts(tmp_path, top_k=False)) == bare


def test_part_by_part_the_top_k_of_some_hundred_rows_is_in_memory(tmp_path: Path) -> None:
    write_rollouts(tmp_path / ACCEPTED, taught(2500))
    peaks = []
    for read in (lambda: read_rollouts(tmp_path), lambda: [row.rollout_id for row in iter_rollouts(tmp_path)]):
        tracemalloc.start()
        read()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] / 4


def test_rows_are_written_while_only_some_hundreds_are_held(tmp_path: Path) -> None:
    alive: set[int] = set()
    held = []

    def rows() -> Iterator[Rollout]:
        for at in range(1500):
            row = some_rollout(f"p{at}/0")
            alive.add(at)
            weakref.finalize(row, alive.discard, at)
            held.append(len(alive))
            yield row

    assert write_rollouts(tmp_path / ACCEPTED, rows()) == 1500
    assert max(held) < 600
    assert [row.prompt.id for row in iter_rollouts(tmp_path)] == [f"p{at}" for at in range(1500)]


def test_a_table_without_rows_is_read_as_one(tmp_path: Path) -> None:
    assert write_rollouts(tmp_path / ACCEPTED, []) == 0
    assert read_rollouts(tmp_path) == list(iter_rollouts(tmp_path)) == []


def test_what_is_wrong_with_a_table_is_found_part_by_part_too(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match=r"run jobs/rollout\.py"):
        list(iter_rollouts(tmp_path))
    write_rollouts(tmp_path / ACCEPTED, taught(300))
    replace_column(tmp_path / ACCEPTED, "rollout_id", [*(f"p{at}/0" for at in range(299)), "other/0"])
    with pytest.raises(CorruptArtifact, match="rollout other/0: its token ids have another sha256"):
        list(iter_rollouts(tmp_path))


@pytest.mark.parametrize("keep", [0, 100, -8])
def test_a_table_that_was_cut_short_is_a_corrupt_artifact_by_name(tmp_path: Path, keep: int) -> None:
    write_rollouts(tmp_path / REJECTED, [some_rollout()])
    contents = (tmp_path / REJECTED).read_bytes()
    (tmp_path / REJECTED).write_bytes(contents[:keep])
    with pytest.raises(CorruptArtifact, match=r"rejected\.parquet cannot be read as Parquet"):
        read_rejected(tmp_path)


def test_a_parquet_file_that_is_no_rollout_table_is_refused_with_its_missing_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"rollout_id": ["a"]}), tmp_path / ACCEPTED)
    with pytest.raises(CorruptArtifact, match="columns missing or of another type: index, prompt_id"):
        read_rollouts(tmp_path)


def test_a_table_that_is_not_there_is_a_missing_input(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match=r"run jobs/rollout\.py"):
        read_rollouts(tmp_path)


def test_a_table_without_rows_reads_as_none(tmp_path: Path) -> None:
    write_rollouts(tmp_path / REJECTED, [])
    assert read_rejected(tmp_path) == []
