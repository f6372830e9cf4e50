import json
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_rollouts import assistant_tokenizer, gold_rollouts
from transformers import AutoTokenizer

from supertiny.errors import ConfigError, CorruptArtifact
from supertiny.llm.chat import prompt_token_ids
from supertiny.records import Completion, Rollout, TopK
from supertiny.train.batching import batches, collate, lay_out, num_steps, share
from supertiny.train.config import DistillConfig
from supertiny.train.loss_config import LossWeights
from supertiny.train.losses import has_teacher
from supertiny.train.objective import check_teacher
from supertiny.train.packing import PackedRows, check_teachers_tokens, check_tokens, pack

LENGTHS = np.array([7, 3, 9, 4, 6, 5, 8, 3, 10, 4, 5])


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return assistant_tokenizer()


@pytest.fixture(scope="module")
def rollouts(tokenizer: object) -> list[Rollout]:
    return gold_rollouts(tokenizer, 12)


@pytest.fixture(scope="module")
def packed(rollouts: list[Rollout], tokenizer: object, tmp_path_factory: pytest.TempPathFactory) -> PackedRows:
    return pack(rollouts, tokenizer, 1024, tmp_path_factory.mktemp("rows"))


def rows_by_step(num_workers: int, micro_batch: int, batch: int = 4) -> list[list[int]]:
    """What all workers together see at each step."""
    order = batches(LENGTHS, batch, seed=3, first_step=0, last_step=9)
    shares = ([share(rows, worker, num_workers, micro_batch) for worker in range(num_workers)] for rows in order)
    return [sorted(int(row) for own in step for micro in own for row in micro) for step in shares]


def test_any_number_of_workers_sees_the_same_batches() -> None:
    assert rows_by_step(1, 4) == rows_by_step(2, 2) == rows_by_step(4, 1) == rows_by_step(2, 1)


def test_every_worker_gets_whole_micro_batches_of_its_own_rows() -> None:
    rows = next(batches(LENGTHS, 8, seed=0, first_step=0, last_step=1))
    shares = [share(rows, worker, 2, 2) for worker in range(2)]
    assert [[len(micro) for micro in own] for own in shares] == [[2, 2], [2, 2]]
    assert sorted(np.concatenate([np.concatenate(own) for own in shares])) == sorted(rows)


def test_a_restart_goes_on_with_the_batches_that_are_left() -> None:
    whole = list(batches(LENGTHS, 4, seed=1, first_step=0, last_step=12))
    rest = list(batches(LENGTHS, 4, seed=1, first_step=5, last_step=12))
    assert [list(rows) for rows in rest] == [list(rows) for rows in whole[5:]]


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 4), st.integers(0, 5))
@settings(max_examples=60)
def test_a_pass_shows_every_row_once_before_any_row_again(num_rows: int, batch: int, passes: int, seed: int) -> None:
    steps = -(-num_rows * passes // batch)
    seen = np.concatenate(list(batches(np.full(num_rows, 5), batch, seed, 0, steps)))
    counts = np.bincount(seen, minlength=num_rows)
    assert counts.min() >= passes
    assert counts.max() - counts.min() <= 1 + batch // num_rows + 1


def test_another_seed_gives_another_order() -> None:
    first, second = (np.concatenate(list(batches(LENGTHS, 4, seed, 0, 5))).tolist() for seed in (0, 1))
    assert first != second


def test_a_batch_starts_with_its_short_rows() -> None:
    for rows in batches(LENGTHS, 4, seed=0, first_step=0, last_step=6):
        assert list(LENGTHS[rows]) == sorted(LENGTHS[rows])


def test_epochs_become_steps() -> None:
    assert num_steps(100, 32, 2.0) == 6
    assert num_steps(3, 32, 1.0) == 1


def test_packed_rows_are_the_prompt_as_served_and_the_completion(rollouts: list[Rollout], packed: PackedRows, tokenizer: object) -> None:
    for row, rollout in enumerate(rollouts):
        prompt = prompt_token_ids(tokenizer, rollout.prompt.messages, rollout.tools)
        tokens = packed.tokens_L[packed.row_starts_R[row] : packed.row_starts_R[row + 1]].tolist()
        assert tokens == prompt + rollout.completion.token_ids
        assert packed.prompt_lengths_R[row] == len(prompt)


def test_rows_that_are_too_long_are_left_out(rollouts: list[Rollout], packed: PackedRows, tokenizer: object, tmp_path: Path) -> None:
    limit = int(np.median(packed.lengths))
    kept = pack(rollouts, tokenizer, limit, tmp_path)
    assert kept.rollout_ids == [name for name, length in zip(packed.rollout_ids, packed.lengths, strict=True) if length <= limit]


def test_a_row_with_more_of_the_teachers_tokens_widens_those_before_it(rollouts: list[Rollout], tokenizer: object, tmp_path: Path) -> None:
    top_k = rollouts[2].completion.top_k
    assert top_k is not None
    wide = top_k.model_copy(update={"ids": [[*row, 7] for row in top_k.ids], "logprobs": [[*row, -9.0] for row in top_k.logprobs]})
    wider = rollouts[2].model_copy(update={"completion": rollouts[2].completion.model_copy(update={"top_k": wide})})
    narrow, both = (pack([rollouts[1], each], tokenizer, 1024, tmp_path / str(at)) for at, each in enumerate((rollouts[2], wider)))
    num_first, width = narrow.top_k_starts_R[1], narrow.top_k_ids_MK.shape[1]
    assert both.top_k_ids_MK.shape == (len(narrow.top_k_ids_MK), width + 1)
    assert np.array_equal(both.top_k_ids_MK[:, :width], narrow.top_k_ids_MK)
    assert np.array_equal(both.top_k_logprobs_MK[:, :width], narrow.top_k_logprobs_MK)
    assert np.isneginf(both.top_k_logprobs_MK[:num_first, width]).all()
    assert (both.top_k_logprobs_MK[num_first:, width] == -9).all()


def test_packing_keeps_one_rollout_in_memory(rollouts: list[Rollout], tokenizer: object, tmp_path: Path) -> None:
    """A hundred rows of 0.8 MB of top-k, in less than 20 MB."""
    row = rollouts[1]
    length = len(row.completion.token_ids or ())
    wide = np.arange(100_000 // length).tolist()

    def many() -> Iterator[Rollout]:
        for at in range(100):
            top_k = TopK(ids=[wide] * length, logprobs=[[-1.0] * len(wide)] * length)
            yield row.model_copy(update={"rollout_id": str(at), "completion": row.completion.model_copy(update={"top_k": top_k})})

    tracemalloc.start()
    packed = pack(many(), tokenizer, 1024, tmp_path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert packed.top_k_ids_MK.nbytes + packed.top_k_logprobs_MK.nbytes > 75 * 10**6
    assert most < 20 * 10**6


def test_a_micro_batch_predicts_each_completion_token_from_the_token_before_it(rollouts: list[Rollout], packed: PackedRows) -> None:
    micro = collate(packed, np.array([1, 4]))
    targets = [token for row in (1, 4) for token in rollouts[row].completion.token_ids]
    flat = micro.tokens_BT.flatten()
    assert micro.taught.targets_N.tolist() == targets
    assert flat[micro.predictors_N + 1].tolist() == targets
    assert micro.tokens_BT.shape == (2, packed.lengths[[1, 4]].max())
    assert micro.positions_BT.tolist() == [list(range(micro.tokens_BT.shape[1]))] * 2


def test_rows_in_one_line_are_predicted_and_counted_from_their_own_beginnings(rollouts: list[Rollout], packed: PackedRows) -> None:
    micro = collate(packed, np.array([1, 4, 2]), 1024)
    flat, targets = micro.tokens_BT.flatten(), [token for row in (1, 4, 2) for token in rollouts[row].completion.token_ids]
    assert micro.tokens_BT.shape == (1, packed.lengths[[1, 4, 2]].sum())
    assert micro.taught.targets_N.tolist() == targets
    assert flat[micro.predictors_N + 1].tolist() == targets
    longest_first = sorted(packed.lengths[[1, 4, 2]].tolist(), reverse=True)
    assert micro.positions_BT[0].tolist() == [position for length in longest_first for position in range(length)]


@given(st.lists(st.integers(1, 12), min_size=1, max_size=20), st.integers(1, 30))
@settings(max_examples=100)
def test_lines_hold_every_row_once_without_overlap_and_are_of_about_one_length(lengths: list[int], line_tokens: int) -> None:
    lines, starts = lay_out(np.array(lengths), line_tokens)
    filled = np.bincount(lines, weights=lengths)
    assert filled.max() <= max(line_tokens, *lengths)
    assert filled.max() - filled.min() <= max(lengths)
    tokens = {(line, start + at) for line, start, length in zip(lines, starts, lengths, strict=True) for at in range(length)}
    assert len(tokens) == sum(lengths)
    assert all(at < filled[line] for line, at in tokens)


def test_a_micro_batch_has_the_teachers_top_k_at_the_tokens_of_the_rows_that_have_it(rollouts: list[Rollout], packed: PackedRows) -> None:
    taught = collate(packed, np.array([0, 1])).taught  # row 0 has none
    without, top_k = len(rollouts[0].completion.token_ids), rollouts[1].completion.top_k
    assert top_k is not None
    assert taught.teacher_ids_NK[without:].tolist() == top_k.ids
    assert torch.equal(taught.teacher_logprobs_NK[without:], torch.tensor(top_k.logprobs))
    assert has_teacher(taught.teacher_logprobs_NK).tolist() == [False] * without + [True] * len(top_k.ids)
    assert packed.teacher_tokens(np.array([0, 1])) == len(top_k.ids)
    assert packed.completion_tokens(np.array([0, 1])) == len(taught.targets_N)


def test_rows_of_which_none_has_a_teacher_are_collated_with_nothing_kept(
    rollouts: list[Rollout], tokenizer: object, tmp_path: Path
) -> None:
    packed = pack(rollouts[:1], tokenizer, 1024, tmp_path)
    assert collate(packed, np.array([0])).taught.teacher_ids_NK.shape == (len(rollouts[0].completion.token_ids), 0)


@pytest.mark.parametrize("values", [{"losses": {"tail_penalty": 1.0}}, {"losses": {"cross_entropy": 1.0}, "min_divergence": 0.1}])
def test_what_the_teachers_top_k_is_needed_for_is_refused_without_any(
    values: dict[str, Any], rollouts: list[Rollout], packed: PackedRows, tokenizer: object, tmp_path: Path
) -> None:
    without = pack([rollouts[0], rollouts[4]], tokenizer, 1024, tmp_path)
    config = DistillConfig.model_validate(values)
    with pytest.raises(ConfigError, match=r"(losses.tail_penalty|min_divergence) without effect: none of the 2 rows of /rollouts has"):
        check_teacher(config, without, Path("/rollouts"))
    check_teacher(config, packed, Path("/rollouts"))
    check_teacher(DistillConfig(losses=LossWeights(cross_entropy=1.0)), without, Path("/rollouts"))


def test_rollouts_without_token_ids_get_them_from_their_text(
    rollouts: list[Rollout], packed: PackedRows, tokenizer: object, tmp_path: Path
) -> None:
    bare = [rollout.model_copy(update={"completion": Completion(text=rollout.completion.text)}) for rollout in rollouts]
    assert np.array_equal(pack(bare, tokenizer, 1024, tmp_path).tokens_L, packed.tokens_L)


def test_rollouts_of_another_tokenizer_are_refused_by_name(rollouts: list[Rollout], tokenizer: object, tmp_path: Path) -> None:
    completion = rollouts[3].completion
    shifted = completion.model_copy(update={"token_ids": [token + 1 for token in completion.token_ids]})
    damaged = rollouts[3].model_copy(update={"completion": shifted})
    with pytest.raises(CorruptArtifact, match=f"rollout {damaged.rollout_id}: .* a cut vocabulary has its own, `<name>-rollouts`"):
        pack([*rollouts[:3], damaged], tokenizer, 1024, tmp_path)


def with_other_end(rollout: Rollout, tokenizer: Any) -> Rollout:
    """As an engine gives it that stops at another token."""
    ids = [*(rollout.completion.token_ids or ())[:-1], tokenizer.convert_tokens_to_ids("<|im_start|>")]
    return rollout.model_copy(update={"completion": rollout.completion.model_copy(update={"token_ids": ids})})


def test_a_student_whose_turns_end_otherwise_is_refused(rollouts: list[Rollout], tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(CorruptArtifact, match=r"12 rollouts end with token \d+ \(<\|im_start\|>\), where the .* with \d+ \(<\|im_end"):
        pack([with_other_end(rollout, tokenizer) for rollout in rollouts], tokenizer, 1024, tmp_path)


def test_a_rollout_that_ends_otherwise_is_left_out(rollouts: list[Rollout], tokenizer: Any, tmp_path: Path) -> None:
    kept = pack([with_other_end(rollouts[0], tokenizer), *rollouts[1:]], tokenizer, 1024, tmp_path)
    assert kept.rollout_ids == [rollout.rollout_id for rollout in rollouts[1:]]


def test_a_teacher_whose_ids_are_other_tokens_is_refused(packed: PackedRows, tokenizer: Any, tmp_path: Path) -> None:
    check_teachers_tokens(packed, tokenizer, tokenizer, Path("/rollouts"))
    first, second = tokenizer.convert_ids_to_tokens(np.unique(packed.top_k_ids_MK)[:2].tolist())
    tokenizer.save_pretrained(tmp_path)
    described = json.loads((tmp_path / "tokenizer.json").read_text())
    ids = described["model"]["vocab"]
    ids[first], ids[second] = ids[second], ids[first]
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(CorruptArtifact, match="2 ids of the teacher's top-k are other tokens of the student's"):
        check_teachers_tokens(packed, AutoTokenizer.from_pretrained(tmp_path), tokenizer, Path("/rollouts"))


def test_a_token_that_the_student_has_no_embedding_for_is_refused(packed: PackedRows, tokenizer: Any) -> None:
    check_tokens(packed, len(tokenizer), Path("/rollouts"))
    beyond = packed.top_k_ids_MK.copy()
    beyond[3, 1] = len(tokenizer)
    with pytest.raises(CorruptArtifact, match=f"/rollouts: token {len(tokenizer)}, .* embedding has {len(tokenizer)} rows"):
        check_tokens(replace(packed, top_k_ids_MK=beyond), len(tokenizer), Path("/rollouts"))


def test_teacher_logprobs_for_another_number_of_tokens_are_refused(rollouts: list[Rollout], tokenizer: object, tmp_path: Path) -> None:
    top_k = rollouts[1].completion.top_k
    assert top_k is not None
    cut = top_k.model_copy(update={"ids": top_k.ids[:-1], "logprobs": top_k.logprobs[:-1]})
    damaged = rollouts[1].model_copy(update={"completion": rollouts[1].completion.model_copy(update={"top_k": cut})})
    with pytest.raises(CorruptArtifact, match=r"\d+ teacher logprobs for \d+ completion tokens"):
        pack([damaged], tokenizer, 1024, tmp_path)
