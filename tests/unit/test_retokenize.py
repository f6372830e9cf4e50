"""Rollouts in the tokens of a smaller vocabulary."""

import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_rollouts import publish_rollouts
from transformers import AutoTokenizer

from supertiny.artifacts import make, open_artifact, resolve
from supertiny.compress.retokenize import publish_renumbered, renumber_rollout, used_ids
from supertiny.compress.vocabulary import KEPT_IDS
from supertiny.config import StageConfig
from supertiny.errors import CorruptArtifact, MissingInput
from supertiny.records import Completion, Prompt, Rollout, TopK, Verdict
from supertiny.rollout_table import iter_rollouts, read_rollouts, read_table, write_rollouts

TEACHER = resolve("package://supertiny.tasks.assistant/models/teacher", ".")


def rollout() -> Rollout:
    top_k = TopK(ids=[[5, 8, 7], [8, 9, 6], [6, 5, 8]], logprobs=[[-0.1, -2.5, -4.0], [-0.7, -0.9, -3.0], [-0.2, -3.0, -5.0]])
    return Rollout(
        rollout_id="p/0",
        index=0,
        prompt=Prompt(id="p", messages=[{"role": "user", "content": "dim the lamp"}]),
        tools=[],
        completion=Completion(text="x", token_ids=[5, 7, 6], top_k=top_k),
        verdict=Verdict(accepted=True, score=1),
        seconds=0,
    )


def test_the_teachers_probability_of_dropped_tokens_goes_into_the_tail():
    nothing = float("-inf")
    moved = renumber_rollout(rollout(), {5: 0, 6: 1, 7: 2}).completion
    assert moved.token_ids == [0, 2, 1]
    assert moved.top_k.ids == [[0, 2, 0], [1, 1, 1], [1, 0, 1]]
    assert moved.top_k.logprobs == [[-0.1, -4.0, nothing], [-3.0, nothing, nothing], [-0.2, -3.0, nothing]]


def test_renumbered_rollouts_survive_the_table_with_their_tail(tmp_path: Path):
    moved = renumber_rollout(rollout(), {5: 0, 6: 1, 7: 2})
    write_rollouts(tmp_path / "rollouts.parquet", [moved])
    assert read_rollouts(tmp_path)[0].completion.top_k.ids == moved.completion.top_k.ids
    tail = read_table(tmp_path / "rollouts.parquet").column("teacher_tail_mass").to_pylist()[0]
    assert tail == pytest.approx((1 - torch.tensor([[-0.1, -4.0], [-3.0, -99], [-0.2, -3.0]]).exp().sum(-1)).tolist(), abs=1e-5)


def peak_bytes(work: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def save_kept_ids(folder: Path, kept_ids: list[int]) -> dict[str, Any]:
    (folder / KEPT_IDS).write_text(json.dumps(kept_ids))
    return {}


def test_a_model_that_does_not_say_which_tokens_it_kept_has_no_rollouts_renumbered_for_it(tmp_path: Path):
    publish_rollouts(tmp_path, [rollout()])
    old = open_artifact("rollouts", str(tmp_path), "rollouts")
    with pytest.raises(MissingInput, match=r"kept_ids\.json: not there, .*; remove .* and prune again"):
        publish_renumbered(StageConfig(name="new", run_root=str(tmp_path)), old, old)


def test_a_model_that_was_cut_again_to_other_tokens_has_its_rollouts_renumbered_again(tmp_path: Path):
    publish_rollouts(tmp_path, [rollout()])
    old = open_artifact("rollouts", str(tmp_path), "rollouts")
    ids = []
    for kept_ids in ([5, 6, 7], [5, 6, 7], [1, 5, 6, 7]):
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        model = make(
            StageConfig(name="model", run_root=str(tmp_path)), "model", {}, lambda folder, kept=kept_ids: save_kept_ids(folder, kept)
        )
        new = publish_renumbered(StageConfig(name="new", run_root=str(tmp_path)), old, model)
        ids.append([row.completion.token_ids for row in iter_rollouts(new.path)])
    assert ids[0] == ids[1]
    assert ids[2] == [[number + 1 for number in row] for row in ids[0]]


def test_rollouts_of_a_model_that_was_cut_otherwise_are_not_left_beside_it_where_new_ones_cannot_be_written(tmp_path: Path):
    publish_rollouts(tmp_path, [rollout()])
    old = open_artifact("rollouts", str(tmp_path), "rollouts")
    config = StageConfig(name="new", run_root=str(tmp_path))
    for name, kept_ids in (("wide", [1, 5, 6, 7]), ("narrow", [1])):
        folder = StageConfig(name=name, run_root=str(tmp_path))
        model = make(folder, "model", {}, lambda folder, kept=kept_ids: save_kept_ids(folder, kept))
        if name == "wide":
            publish_renumbered(config, old, model)
    with pytest.raises(CorruptArtifact, match="has the token id 5, which"):
        publish_renumbered(config, old, model)
    assert not (tmp_path / "new").exists()


def test_rollouts_are_renumbered_while_only_some_hundreds_are_held(tmp_path: Path):
    drawn = rollout().completion
    long = Completion(text="x", token_ids=drawn.token_ids * 3, top_k=TopK(ids=drawn.top_k.ids * 3, logprobs=drawn.top_k.logprobs * 3))
    rows = [rollout().model_copy(update={"rollout_id": f"p/{index}", "index": index, "completion": long}) for index in range(1200)]
    publish_rollouts(tmp_path, rows)
    old, config = open_artifact("rollouts", str(tmp_path), "rollouts"), StageConfig(name="new", run_root=str(tmp_path))
    model = make(StageConfig(name="model", run_root=str(tmp_path)), "model", {}, lambda folder: save_kept_ids(folder, [5, 6, 7]))
    whole = peak_bytes(lambda: read_rollouts(old.path))
    assert peak_bytes(lambda: publish_renumbered(config, old, model)) < 0.6 * whole
    new = open_artifact("new", str(tmp_path), "rollouts")
    assert new.manifest.metrics == {"rollouts": 1200, "accepted": 1200}
    assert [row.index for row in iter_rollouts(new.path)] == list(range(1200))


def test_used_tokens_are_those_of_prompts_tools_and_completions_as_they_were_drawn_and_as_their_text_encodes():
    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    spelt = tokenizer.convert_tokens_to_ids([*"dim"])
    completion = Completion(text="dim", token_ids=[*spelt, tokenizer.eos_token_id])
    drawn = rollout().model_copy(update={"tools": [{"function": {"name": "zebra"}}], "completion": completion})
    assert {*spelt, *tokenizer.encode("dim the lamp"), *tokenizer.encode("dim"), *tokenizer.encode("zebra")} <= used_ids(tokenizer, [drawn])


@pytest.mark.parametrize(
    ("strange", "said"),
    [
        ([1030], r"rollout p/0: its token id 1030 is no token of the student's, .*; make the rollouts again"),
        ([300, 301], "rollout p/0: its 6 token ids are not its text under the student's tokenizer; take rollouts in its own tokens"),
    ],
)
def test_a_rollout_whose_ids_are_no_tokens_or_another_text_is_refused_by_name(strange: list[int], said: str):
    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    ids = [*tokenizer.convert_tokens_to_ids([*"dim"]), *strange, tokenizer.eos_token_id]
    with pytest.raises(CorruptArtifact, match=said):
        used_ids(tokenizer, [rollout().model_copy(update={"completion": Completion(text="dim", token_ids=ids)})])
