"""Which completions suit the student, by log-probabilities that are given."""

from __future__ import annotations

import pytest

from supertiny.records import Completion, Prompt, Rollout, Verdict
from supertiny.rollout.config import LikelihoodConfig
from supertiny.rollout.likelihood import likely


def rollout(name: str, *, accepted: bool = True, text: str | None = None) -> Rollout:
    prompt_id, _, index = name.rpartition("/")
    return Rollout(
        rollout_id=name,
        index=int(index),
        prompt=Prompt(id=prompt_id, messages=[]),
        tools=[],
        completion=Completion(text=name if text is None else text),
        verdict=Verdict(accepted=accepted, score=1),
        seconds=0.0,
    )


ROLLOUTS = [rollout("a/0"), rollout("a/1"), rollout("a/2"), rollout("a/3", accepted=False), rollout("b/0")]
LOGPROBS = {"a/0": -0.5, "a/1": -0.1, "a/2": -0.5, "b/0": -3.0}


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        (LikelihoodConfig(student="s", keep_per_prompt=2), {"a/0", "a/1", "b/0"}),  # the earlier one on a tie
        (LikelihoodConfig(student="s", min_logprob=-0.5), {"a/0", "a/1", "a/2"}),
        (LikelihoodConfig(student="s", min_logprob=0.0), set()),
        (LikelihoodConfig(student="s", keep_per_prompt=1, min_logprob=-1.0), {"a/1"}),
    ],
)
def test_the_likeliest_accepted_completions_of_each_prompt_stay(config: LikelihoodConfig, kept: set[str]) -> None:
    assert likely(ROLLOUTS, LOGPROBS, config) == kept
    assert likely(ROLLOUTS[::-1], LOGPROBS, config) == kept


def test_a_text_that_was_given_twice_takes_no_other_texts_place() -> None:
    group = [rollout("a/0", text="x"), rollout("a/1", text="x"), rollout("a/2", text="y"), rollout("a/3", text="z")]
    logprobs = {"a/0": -0.1, "a/1": -0.1, "a/2": -0.2, "a/3": -0.3}
    assert likely(group, logprobs, LikelihoodConfig(student="s", keep_per_prompt=2)) == {"a/0", "a/1", "a/2"}


def test_an_accepted_rollout_without_a_log_probability_is_named() -> None:
    with pytest.raises(KeyError, match="b/0"):
        likely(ROLLOUTS, {"a/0": 0.0, "a/1": 0.0, "a/2": 0.0}, LikelihoodConfig(student="s", keep_per_prompt=1))
