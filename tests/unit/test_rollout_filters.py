"""What a group of completions decides together, and that the ledger loses none of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supertiny.errors import CorruptArtifact
from supertiny.records import Call, Completion, Judgement, Prompt, Rollout, Usage, Verdict
from supertiny.rollout.config import FiltersConfig
from supertiny.rollout.filters import filter_groups, majority
from supertiny.rollout.ledger import add, check_complete, publish, write_tables
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


def filtered(rollouts: Sequence[Rollout], **filters: Any) -> list[Rollout]:
    return filter_groups(rollouts, FiltersConfig(**filters)).rollouts


def test_the_majority_is_the_commonest_calls_whatever_their_case_and_the_earliest_on_a_tie() -> None:
    loud = [Call(name="set_light", arguments={"power": "OFF"})]
    assert majority([ON, OFF, loud]) == (OFF, 2)
    assert majority([ON, OFF]) == (ON, 1)


def test_where_nobody_knows_the_right_calls_the_majority_becomes_the_reference_and_the_others_a_minority() -> None:
    result = filtered(group([OFF, ON, ON, None]), min_agreement=None, drop_duplicates=False)
    assert reasons(result) == ["minority", "accepted", "accepted", "schema"]
    assert [rollout.prompt.reference for rollout in result] == [ON] * 4


def test_a_known_reference_is_kept() -> None:
    result = filtered(group([OFF, OFF, ON], reference=ON), min_agreement=None, drop_duplicates=False)
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
    result = filtered(group(answers), min_agreement=0.75, drop_duplicates=False)
    assert reasons(result) == expected
    assert result[0].prompt.reference == (ON if expected[0] == "accepted" else None)


def test_no_call_is_an_answer_that_completions_can_agree_on() -> None:
    result = filtered(group([[], [], ON]), min_agreement=0.6, drop_duplicates=False)
    assert reasons(result) == ["accepted", "accepted", "minority"]
    assert result[0].prompt.reference == []


def test_the_second_of_two_equal_texts_of_a_prompt_is_a_duplicate_only_where_that_is_asked_for() -> None:
    rollouts = group([ON, OFF, ON], reference=ON) + group([ON], prompt_id="q", reference=ON)
    assert reasons(filtered(rollouts, min_agreement=None, drop_duplicates=True)) == ["accepted", "accepted", "duplicate", "accepted"]
    assert reasons(filtered(rollouts, min_agreement=None, drop_duplicates=False)) == ["accepted"] * 4


def test_a_prompt_is_dropped_by_the_share_of_its_completions_that_were_accepted_before_duplicates_were() -> None:
    rollouts = [
        *group([ON, ON, ON, ON], prompt_id="always", reference=ON),
        *group([ON, ON, None, None], prompt_id="half", reference=ON),
        *group([ON, None, None, None], prompt_id="seldom", reference=ON),
        *group([None] * 4, prompt_id="never", reference=ON),
    ]
    result = filtered(rollouts, min_pass_rate=0.5, max_pass_rate=0.75, drop_duplicates=True)
    assert reasons(result) == [
        *["often_solved"] * 4,
        *["accepted", "duplicate", "schema", "schema"],
        *["seldom_solved", "schema", "schema", "schema"],
        *["schema"] * 4,
    ]
    assert result[0].verdict.evidence == "4 of the prompt's 4 completions were accepted; max_pass_rate is 0.75"


def test_bounds_of_the_pass_rate_are_themselves_kept() -> None:
    rollouts = group([ON, None, None, None], prompt_id="a", reference=ON) + group([ON, ON, ON, None], prompt_id="b", reference=ON)
    assert sum(row.verdict.accepted for row in filtered(rollouts, min_pass_rate=0.25, max_pass_rate=0.75)) == 4


def said(words: str, answer: list[Call], prompt_id: str) -> list[Rollout]:
    """One accepted rollout of a prompt of these words, after a system message that all share."""
    (row,) = group([answer], prompt_id=prompt_id, reference=answer)
    messages = [{"role": "system", "content": "You are the assistant of a smart home. " * 9}, {"role": "user", "content": words}]
    return [row.model_copy(update={"prompt": row.prompt.model_copy(update={"messages": messages})})]


def test_a_near_duplicate_makes_the_same_calls_for_nearly_the_same_words() -> None:
    rollouts = [
        *said("please switch on the light in the kitchen now", ON, "b"),
        *said("Please switch on the light in the kitchen", ON, "a"),
        *said("please switch on the light in the kitchen", OFF, "c"),
        *said("is anybody home", ON, "d"),
    ]
    result = filtered(rollouts, max_similarity=0.8)
    assert reasons(result) == ["near_duplicate", "accepted", "accepted", "accepted"]
    assert result[0].verdict.evidence == "the same calls as prompt a, whose text has a similarity of 0.90"


def test_completions_of_one_prompt_are_no_near_duplicates_of_one_another() -> None:
    assert reasons(filtered(group([ON, ON], reference=ON), max_similarity=0.8)) == ["accepted", "accepted"]


def test_a_prompt_that_was_dropped_stands_in_no_others_way() -> None:
    rollouts = group([ON, ON], prompt_id="always", reference=ON) + group([ON, None], prompt_id="sometimes", reference=ON)
    assert reasons(filtered(rollouts, max_pass_rate=0.5, max_similarity=0.8)) == ["often_solved", "often_solved", "accepted", "schema"]


def rejected(prompt_id: str, reason: str) -> Rollout:
    """The one rollout of a prompt, rejected before the filters."""
    (row,) = group([None], prompt_id=prompt_id)
    return row.model_copy(update={"verdict": Verdict(accepted=False, score=-1, reason=reason)})


def test_every_layer_is_counted_and_the_pass_rates_are_told() -> None:
    judged = Judgement(prompt=[], answers=["Score: 1"], score=1.0, usage=Usage())
    verdict = Verdict(accepted=False, score=1, reason="low_score", judgement=judged)
    rollouts = [
        *group([ON, ON, None, OFF], prompt_id="a"),
        *[row.model_copy(update={"verdict": verdict}) for row in group([ON], prompt_id="b", reference=ON)],
        *group([OFF], prompt_id="c", reference=OFF),
        *group([OFF], prompt_id="d", reference=OFF),
        *[rejected(f"e{at}", reason) for at, reason in enumerate(("malformed", "timed_out", "crashed", "wrong_call"))],
    ]
    result = filter_groups(rollouts, FiltersConfig(drop_duplicates=True, max_similarity=0.5, max_pass_rate=0.9))
    assert result.rejected_by_layer == {
        "pipeline": 2,
        "parse": 1,
        "schema": 1,
        "verdict": 1,
        "judge": 1,
        "agreement": 1,
        "pass_rate": 2,
        "likelihood": 0,
        "duplicate": 1,
        "near_duplicate": 0,
    }
    assert result.pass_rates == {"0/1": 5, "2/4": 1, "1/1": 2}
    assert sum(result.rejected_by_layer.values()) + len([row for row in result.rollouts if row.verdict.accepted]) == len(rollouts)


ANSWERS = st.lists(st.lists(st.sampled_from([ON, OFF, DIM, [], None]), min_size=1, max_size=5), max_size=5)
FILTERS = st.fixed_dictionaries(
    {
        "min_agreement": st.sampled_from([None, 0.3, 0.5, 1.0]),
        "min_pass_rate": st.sampled_from([None, 0.4]),
        "max_pass_rate": st.sampled_from([None, 0.7]),
        "drop_duplicates": st.booleans(),
        "max_similarity": st.sampled_from([None, 0.8]),
    }
)


@given(ANSWERS, FILTERS)
def test_no_rollout_is_lost_doubled_moved_or_accepted_again(groups: list[list[list[Call] | None]], filters: dict[str, Any]) -> None:
    before = [rollout for at, answers in enumerate(groups) for rollout in group(answers, prompt_id=str(at))]
    result = filter_groups(before, FiltersConfig(**filters))
    after = result.rollouts
    assert [rollout.rollout_id for rollout in after] == [rollout.rollout_id for rollout in before]
    assert all(old.verdict.accepted or not new.verdict.accepted for old, new in zip(before, after, strict=True))
    assert all(new.verdict.accepted or new.verdict.reason or not old.verdict.reason for old, new in zip(before, after, strict=True))
    assert sum(result.rejected_by_layer.values()) == sum(not rollout.verdict.accepted for rollout in after)
    assert sum(result.pass_rates.values()) == len(groups)


@given(ANSWERS, FILTERS, st.randoms())
def test_the_order_of_the_prompts_decides_nothing(groups: list[list[list[Call] | None]], filters: dict[str, Any], random: Random) -> None:
    members = [group(answers, prompt_id=str(at)) for at, answers in enumerate(groups)]
    first = filtered([row for each in members for row in each], **filters)
    random.shuffle(members)
    second = filtered([row for each in members for row in each], **filters)
    assert sorted(first, key=lambda row: row.rollout_id) == sorted(second, key=lambda row: row.rollout_id)


def test_the_ledger_adds_up_and_the_tables_hold_what_it_says(tmp_path: Path) -> None:
    rollouts = group([ON, None, ON], reference=ON) + group([[], None], prompt_id="q", reference=[], slice_name="out_of_scope")
    ledger = publish(tmp_path, write_tables(tmp_path, [rollouts]), {"last_attempt": {"seconds": 1.5}})
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
    ids = ["p/0", "p/1", "p/2"]
    with pytest.raises(CorruptArtifact, match=message):
        check_complete([ids[at] for at in kept], ids)


def test_a_rollout_that_nobody_asked_for_is_named() -> None:
    with pytest.raises(CorruptArtifact, match=r"1 not asked for \(p/1\)"):
        check_complete(["p/0", "p/1"], ["p/0"])


def test_prompts_filtered_part_by_part_are_judged_and_counted_as_all_at_once() -> None:
    parts = [group([ON, None, OFF] if at % 2 else [ON, ON, ON], prompt_id=f"p{at}") for at in range(4)]
    filters = FiltersConfig(min_agreement=0.5, max_pass_rate=0.9, drop_duplicates=True)
    total: dict[str, Any] = {"rejected_by_layer": {}, "pass_rates": {}}
    rollouts = []
    for part in parts:
        filtered = filter_groups(part, filters)
        rollouts += filtered.rollouts
        add(total, {"rejected_by_layer": filtered.rejected_by_layer, "pass_rates": filtered.pass_rates})
    whole = filter_groups([rollout for part in parts for rollout in part], filters)
    assert rollouts == whole.rollouts
    assert total == {"rejected_by_layer": whole.rejected_by_layer, "pass_rates": whole.pass_rates}
    assert sum(total["rejected_by_layer"].values()) > 0


def test_a_ledger_of_several_parts_is_that_of_the_whole(tmp_path: Path) -> None:
    parts = [group([ON, None, OFF], prompt_id=f"p{at}", reference=ON if at % 2 else OFF, slice_name=f"s{at % 3}") for at in range(6)]
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = write_tables(tmp_path / "whole", [[rollout for part in parts for rollout in part]])
    by_parts = write_tables(tmp_path / "parts", parts)
    assert by_parts == whole | {"engine_seconds": pytest.approx(whole["engine_seconds"])}
    assert list(by_parts) == list(whole)
    for read in (read_rollouts, read_rejected):
        assert read(tmp_path / "parts") == read(tmp_path / "whole")
