"""What a group of completions decides together, and that the ledger loses none of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supertiny.errors import CorruptArtifact
from supertiny.records import Call, Completion, Prompt, Rollout, Usage, Verdict
from supertiny.rollout.filters import filter_groups, majority
from supertiny.rollout.ledger import check_complete, publish
from supertiny.rollout_table import read_rejected, read_rollouts
from supertiny.tasks.calls import render

ON, OFF, DIM = ([Call(name="set_light", arguments={"power": power})] for power in ("on", "off", "dim"))


def group(
    answers: Sequence[list[Call] | None], *, prompt_id: str = "p", reference: list[Call] | None = None, slice_name: str = "in_scope"
) -> list[Rollout]:
    """One rollout an answer; None is a completion that the verifier rejected."""
    prompt = Prompt(id=prompt_id, messages=[{"role": "user", "content": "light"}], reference=reference, slice=slice_name)
    return [
        Rollout(
            rollout_id=f"{prompt_id}/{index}",
            index=index,
            prompt=prompt,
            tools=[],
            completion=Completion(text=render(answer or []), usage=Usage(calls=2, prompt_tokens=10, completion_tokens=3)),
            verdict=Verdict(accepted=answer is not None, score=1.0 if answer is not None else -1.0, reason="" if answer else "schema"),
            seconds=0.1,
        )
        for index, answer in enumerate(answers)
    ]


def reasons(rollouts: Sequence[Rollout]) -> list[str]:
    return ["accepted" if rollout.verdict.accepted else rollout.verdict.reason for rollout in rollouts]


def test_the_majority_is_the_commonest_calls_whatever_their_case_and_the_earliest_on_a_tie() -> None:
    loud = [Call(name="set_light", arguments={"power": "OFF"})]
    assert majority([ON, OFF, loud]) == (OFF, 2)
    assert majority([ON, OFF]) == (ON, 1)


def test_where_nobody_knows_the_right_calls_the_majority_becomes_the_reference_and_the_others_a_minority() -> None:
    result = filter_groups(group([OFF, ON, ON, None]), min_agreement=None, drop_duplicates=False)
    assert reasons(result) == ["minority", "accepted", "accepted", "schema"]
    assert [rollout.prompt.reference for rollout in result] == [ON] * 4


def test_a_known_reference_is_kept() -> None:
    result = filter_groups(group([OFF, OFF, ON], reference=ON), min_agreement=None, drop_duplicates=False)
    assert reasons(result) == ["accepted"] * 3
    assert result[0].prompt.reference == ON


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([ON, ON, ON, None], ["accepted", "accepted", "accepted", "schema"]),  # 3 of 4
        ([ON, ON, OFF, None], ["no_agreement", "no_agreement", "no_agreement", "schema"]),  # 2 of 4
        ([None, None, None, None], ["schema"] * 4),
    ],
)
def test_agreement_is_asked_of_the_whole_group_rejected_completions_included(answers: list[list[Call] | None], expected: list[str]) -> None:
    result = filter_groups(group(answers), min_agreement=0.75, drop_duplicates=False)
    assert reasons(result) == expected
    assert result[0].prompt.reference == (ON if expected[0] == "accepted" else None)


def test_no_call_is_an_answer_that_completions_can_agree_on() -> None:
    result = filter_groups(group([[], [], ON]), min_agreement=0.6, drop_duplicates=False)
    assert reasons(result) == ["accepted", "accepted", "minority"]
    assert result[0].prompt.reference == []


def test_the_second_of_two_equal_texts_of_a_prompt_is_a_duplicate_only_where_that_is_asked_for() -> None:
    rollouts = group([ON, OFF, ON], reference=ON) + group([ON], prompt_id="q", reference=ON)
    assert reasons(filter_groups(rollouts, min_agreement=None, drop_duplicates=True)) == ["accepted", "accepted", "duplicate", "accepted"]
    assert reasons(filter_groups(rollouts, min_agreement=None, drop_duplicates=False)) == ["accepted"] * 4


@given(
    st.lists(st.lists(st.sampled_from([ON, OFF, DIM, [], None]), min_size=1, max_size=5), max_size=5),
    st.sampled_from([None, 0.3, 0.5, 1.0]),
    st.booleans(),
)
def test_no_rollout_is_lost_doubled_moved_or_accepted_again(
    groups: list[list[list[Call] | None]], min_agreement: float | None, drop: bool
) -> None:
    before = [rollout for at, answers in enumerate(groups) for rollout in group(answers, prompt_id=str(at))]
    after = filter_groups(before, min_agreement=min_agreement, drop_duplicates=drop)
    assert [rollout.rollout_id for rollout in after] == [rollout.rollout_id for rollout in before]
    assert all(old.verdict.accepted or not new.verdict.accepted for old, new in zip(before, after, strict=True))
    assert all(new.verdict.accepted or new.verdict.reason or not old.verdict.reason for old, new in zip(before, after, strict=True))


def test_the_ledger_adds_up_and_the_tables_hold_what_it_says(tmp_path: Path) -> None:
    rollouts = group([ON, None, ON], reference=ON) + group([[], None], prompt_id="q", reference=[], slice_name="out_of_scope")
    ledger = publish(tmp_path, rollouts, {"seconds": 1.5})
    assert ledger == json.loads((tmp_path / "ledger.json").read_text())
    assert ledger["last_attempt"] == {"seconds": 1.5}
    assert (ledger["prompts"], ledger["rollouts"], ledger["accepted"], ledger["rejected"]) == (2, 5, 3, 2)
    assert ledger["rejected_by_reason"] == {"schema": 2}
    assert ledger["accepted_by_slice"] == {"in_scope": 2, "out_of_scope": 1}
    assert (ledger["model_calls"], ledger["prompt_tokens"], ledger["completion_tokens"]) == (10, 50, 15)
    assert [rollout.rollout_id for rollout in read_rollouts(tmp_path)] == ["p/0", "p/2", "q/0"]
    assert [rollout.rollout_id for rollout in read_rejected(tmp_path)] == ["p/1", "q/1"]


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ([0, 1], r"2 rollouts for 3 asked for: 1 missing \(p/2\)"),
        ([0, 1, 2, 1], r"1 there more than once \(p/1\)"),
    ],
)
def test_a_lost_or_doubled_rollout_is_named(kept: list[int], message: str) -> None:
    rollouts = group([ON, ON, ON])
    with pytest.raises(CorruptArtifact, match=message):
        check_complete([rollouts[at] for at in kept], [rollout.rollout_id for rollout in rollouts])


def test_a_rollout_that_nobody_asked_for_is_named() -> None:
    with pytest.raises(CorruptArtifact, match=r"1 not asked for \(p/1\)"):
        check_complete(group([ON, ON]), ["p/0"])
