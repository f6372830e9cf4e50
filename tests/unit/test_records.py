"""Records and errors: what crosses processes survives the trip."""

from __future__ import annotations

import inspect
import pickle

import pytest
from pydantic import ValidationError

from supertiny import errors
from supertiny.records import Call, Completion, Prompt, Rollout, TopK, Usage, Verdict

ERRORS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_survives_pickling_with_its_message(kind: type[errors.SupertinyError]) -> None:
    copy = pickle.loads(pickle.dumps(kind("distill: 3 of 4 rows")))
    assert type(copy) is kind
    assert str(copy) == "distill: 3 of 4 rows"


@pytest.mark.parametrize("kind", [kind for kind in ERRORS if kind is not errors.SupertinyError])
def test_every_error_is_ours_and_a_standard_one_and_is_drawn_in_the_tree(kind: type[errors.SupertinyError]) -> None:
    ours, standard = kind.__bases__
    assert ours is errors.SupertinyError
    assert standard.__module__ == "builtins"
    drawn = [line.split() for line in (errors.__doc__ or "").splitlines() if f"─ {kind.__name__} " in line]
    assert [line[2] for line in drawn] == [f"({standard.__name__})"]


def test_a_rollout_survives_json_and_pickle() -> None:
    rollout = Rollout(
        rollout_id="p/0",
        index=0,
        prompt=Prompt(id="p", messages=[{"role": "user", "content": "läuft"}], reference=[Call(name="a", arguments={"x": [1, None]})]),
        tools=[{"type": "function", "function": {"name": "a", "parameters": {}}}],
        completion=Completion(text="t", token_ids=[1, 2], top_k=TopK(ids=[[1, 3], [2, 4]], logprobs=[[-0.25, -2.0], [-0.5, -1.0]])),
        verdict=Verdict(accepted=True, score=1),
        seconds=0.5,
    )
    assert Rollout.model_validate_json(rollout.model_dump_json()) == rollout
    assert pickle.loads(pickle.dumps(rollout)) == rollout


def test_no_calls_and_nobody_knows_stay_apart() -> None:
    none, unknown = (Prompt(id="p", messages=[], reference=reference) for reference in ([], None))
    assert Prompt.model_validate_json(none.model_dump_json()).reference == []
    assert Prompt.model_validate_json(unknown.model_dump_json()).reference is None


def test_usage_adds_up_over_calls() -> None:
    first, second = Usage(prompt_tokens=10, cached_tokens=4, completion_tokens=3), Usage(calls=2, prompt_tokens=20, completion_tokens=5)
    assert first + second == Usage(calls=3, prompt_tokens=30, cached_tokens=4, completion_tokens=8)


@pytest.mark.parametrize("score", [-1.1, 1.1, float("nan")])
def test_a_verdicts_score_lies_between_minus_1_and_1(score: float) -> None:
    with pytest.raises(ValidationError, match="score"):
        Verdict(accepted=False, score=score)


def test_records_refuse_unknown_fields_and_changes() -> None:
    with pytest.raises(ValidationError, match="argument"):
        Call(name="a", argument={})  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="frozen"):
        Call(name="a").name = "b"  # type: ignore[misc]
