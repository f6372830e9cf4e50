"""Earlier rollouts among new ones."""

import logging
from pathlib import Path

import pytest
from tiny_rollouts import assistant_tokenizer, gold_rollouts, publish_rollouts

from supertiny.artifacts import open_artifact
from supertiny.config import validate
from supertiny.errors import ConfigError
from supertiny.records import Rollout
from supertiny.train.config import DistillConfig, ValidationConfig
from supertiny.train.distill import _read
from supertiny.train.prompts import split
from supertiny.train.replay import to_ask, with_replay


@pytest.fixture(scope="module")
def rollouts() -> list[Rollout]:
    return gold_rollouts(assistant_tokenizer(), 80)


def test_a_fraction_of_all_rows_comes_from_earlier_rollouts(rollouts: list[Rollout]) -> None:
    new = rollouts[:40]
    mixed = with_replay(new, {"june": rollouts[40:60], "july": rollouts[60:]}, fraction=0.2, seed=0)
    assert mixed[:40] == new
    assert len(mixed) == 50
    assert {rollout.rollout_id.partition(":")[0] for rollout in mixed[40:]} == {"june", "july"}


def test_the_same_seed_draws_the_same_rows_and_another_one_others(rollouts: list[Rollout]) -> None:
    drawn = [with_replay(rollouts[:20], {"june": rollouts[20:]}, fraction=0.3, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


def test_too_few_earlier_rows_are_all_taken_and_it_is_said(rollouts: list[Rollout], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert len(with_replay(rollouts[:40], {"june": rollouts[40:43]}, fraction=0.5, seed=0)) == 43
    assert "3 earlier rollouts where 40 would be 50 % of all" in caplog.text


def test_a_prompt_that_both_have_stays_two_prompts(rollouts: list[Rollout]) -> None:
    mixed = with_replay(rollouts[:1], {"june": rollouts[:1]}, fraction=0.5, seed=0)
    assert len({rollout.prompt.id for rollout in mixed}) == len({rollout.rollout_id for rollout in mixed}) == 2


def test_earlier_prompts_are_a_slice_of_their_own(rollouts: list[Rollout]) -> None:
    mixed = with_replay(rollouts[:8], {"june": rollouts[8:16]}, fraction=0.5, seed=0)
    assert {rollout.prompt.slice for rollout in mixed[8:]} == {"replayed"}
    assert "replayed" not in {rollout.prompt.slice for rollout in mixed[:8]}


def test_replayed_prompts_are_among_those_kept_out_by_the_share_that_they_have_in_training(rollouts: list[Rollout], tmp_path: Path) -> None:
    publish_rollouts(tmp_path, rollouts[:20])
    publish_rollouts(tmp_path, rollouts[20:], "june")
    replay = {"rollouts": ["june"], "fraction": 0.25}
    config = validate(DistillConfig, {"run_root": str(tmp_path), "validation": {"fraction": 0.4}, "replay": replay}, "test")
    parents = {name: open_artifact(uri, str(tmp_path), "rollouts") for name, uri in (("rollouts", "rollouts"), ("replay:june", "june"))}
    for part in _read(config, parents):
        replayed = [rollout for rollout in part if rollout.prompt.slice == "replayed"]
        assert len(replayed) == round((len(part) - len(replayed)) / 3) > 0


def test_prompts_without_a_reference_are_not_asked_nor_counted(rollouts: list[Rollout]) -> None:
    bare = rollouts[1].model_copy(update={"prompt": rollouts[1].prompt.model_copy(update={"reference": None})})
    assert to_ask([rollouts[0], bare, rollouts[0]]) == [rollouts[0]]


def test_of_few_rows_one_is_replayed_all_the_same(rollouts: list[Rollout]) -> None:
    assert len(with_replay(rollouts[:2], {"june": rollouts[8:]}, fraction=0.05, seed=0)) == 3


def test_what_is_kept_out_is_not_trained_on(rollouts: list[Rollout]) -> None:
    rest, kept_out = split(rollouts, ValidationConfig(fraction=0.3))
    assert len(rest) + len(kept_out) == len(rollouts)
    assert not {rollout.prompt.id for rollout in rest} & {rollout.prompt.id for rollout in kept_out}
    assert split(rollouts, None) == (rollouts, [])


def test_nothing_to_validate_is_refused(rollouts: list[Rollout]) -> None:
    with pytest.raises(ConfigError, match=r"validation\.fraction 0\.01 keeps 0 of 3 rollouts out"):
        split(rollouts[:3], ValidationConfig(fraction=0.01))
