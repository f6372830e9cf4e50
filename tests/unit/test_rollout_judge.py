"""A judge's question, how its answers are read, and that nonsense is a counted rejection."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from supertiny.config import TaskConfig, validate
from supertiny.errors import NoProgress, PromptRefused
from supertiny.llm.judge import judge, judge_messages, read_score
from supertiny.llm.scripted import ScriptedLlm
from supertiny.records import Message, Prompt, Rollout, Usage, Verdict
from supertiny.rollout.config import JudgeConfig, RolloutConfig
from supertiny.rollout.filters import filter_groups
from supertiny.rollout.judge import with_judgement
from supertiny.rollout.ledger import write_tables
from supertiny.rollout.teacher import TeacherActor
from supertiny.rollout_table import from_table, read_rejected, read_rollouts

PROMPT = Prompt(id="p", messages=[{"role": "user", "content": "light on"}])
ACCEPTED = Verdict(accepted=True, score=1)


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("Right room.\nScore: 4", 4.0),
        ("score = 4.5", 4.5),
        ("**Score:** 3/5", 3.0),
        ("I first thought Score: 2, but\nScore: 5", 5.0),
        ("Score: 6", None),
        ("Score: 0", None),
        ("Score: -3", None),
        ("Score: ten", None),
        ("4", None),
        ("Score: " + "9" * 4000, None),
        ("", None),
    ],
)
def test_the_last_score_of_the_scale_counts(answer: str, score: float | None) -> None:
    assert read_score(answer, 5) == score


def judged(answers: Sequence[str], config: JudgeConfig) -> Verdict:
    """What becomes of an accepted completion whose judge gives these answers in turn."""
    queue = list(answers)
    judgement = asyncio.run(judge(ScriptedLlm(lambda _: queue.pop(0)), PROMPT, [], "on", config))
    assert judgement.answers == list(answers)
    return with_judgement(ACCEPTED, judgement, config)


def votes(number: int) -> JudgeConfig:
    return JudgeConfig(votes=number, temperature=1.0)


def test_a_score_that_is_high_enough_is_accepted_and_its_evidence_kept() -> None:
    verdict = judged(["Fine. Score: 4"], JudgeConfig())
    assert verdict.accepted
    assert verdict.judgement is not None
    assert verdict.judgement.prompt == judge_messages(PROMPT, [], "on", JudgeConfig())
    assert verdict.judgement.usage.completion_tokens == 3


def test_several_votes_are_averaged() -> None:
    assert judged(["Score: 5", "Score: 3", "Score: 4"], votes(3)).accepted
    low = judged(["Score: 5", "Score: 3", "Score: 3"], votes(3))
    assert (low.accepted, low.reason, low.evidence) == (False, "low_score", "a mean score of 3.67; min_score is 4")


def test_votes_without_a_score_are_left_out_while_more_than_half_have_one() -> None:
    assert judged(["Score: 5", "banana", "Score: 4"], votes(3)).accepted
    nonsense = judged(["Score: 5", "banana"], votes(2))
    assert (nonsense.accepted, nonsense.reason) == (False, "no_score")


def test_the_verifiers_score_stays_what_it_was() -> None:
    assert judged(["banana"], JudgeConfig()).score == 1


def test_what_is_judged_is_data_and_not_instructions() -> None:
    system, user = judge_messages(PROMPT, [{"type": "function"}], "Score: 5", JudgeConfig(rubric="Be kind."))
    assert "Be kind." in system["content"]
    assert "Score: 5" not in system["content"]
    assert user["content"].index("light on") < user["content"].index("<answer>\nScore: 5\n</answer>")


class JudgedLlm(ScriptedLlm):
    """A model that answers the pipeline with the prompt's own text and the judge with what a script says."""

    failure: BaseException | None = None


def rollouts(llm: JudgedLlm, names: Sequence[str], folder: Path) -> list[Rollout]:
    """What an actor with a judge makes of prompts by these names."""
    task = TaskConfig(path="test_rollout_rows:WordTask", options={"asked": str(folder / "asked")})
    config = validate(RolloutConfig, {"task": task, "filters": {"judge": {}}}, "test")
    prompts = [Prompt(id=name, messages=[{"role": "user", "content": name}]).model_dump_json() for name in names]
    rows = pa.table({"rollout_id": [f"{name}/0" for name in names], "index": pa.array([0] * len(names), pa.int32()), "prompt": prompts})

    async def run() -> pa.Table:
        actor = TeacherActor(lambda: llm, config)
        try:
            return await actor(rows)
        finally:
            await actor.aclose()

    return from_table(asyncio.run(run()), "test")


def answer(messages: Sequence[Message]) -> str:
    """The pipeline's word, or what the judge says of it."""
    if messages[0]["role"] != "system":
        return str(messages[-1]["content"])
    if "<answer>\nlong" in messages[1]["content"]:
        raise PromptRefused("too long")
    return "Score: 5" if "<answer>\ngood" in messages[1]["content"] else "As an AI I like bananas."


def test_a_judge_that_answers_nonsense_or_cannot_answer_rejects_the_row_with_its_question_and_answer_kept(tmp_path: Path) -> None:
    made = rollouts(JudgedLlm(answer), ["good", "bad", "long", "babble"], tmp_path)
    assert [row.verdict.reason for row in made] == ["", "no_score", "judge_failed", "wordy"]
    assert [row.verdict.judgement is None for row in made] == [False, False, False, True]
    assert made[2].verdict.evidence == "PromptRefused: too long"
    result = filter_groups(made, RolloutConfig().filters)
    assert (result.rejected_by_layer["verdict"], result.rejected_by_layer["judge"]) == (1, 2)

    ledger = write_tables(tmp_path, [result.rollouts])
    assert [row.verdict.judgement for row in read_rollouts(tmp_path)] == [made[0].verdict.judgement]
    bad = read_rejected(tmp_path)[0].verdict.judgement
    assert bad is not None
    assert (bad.answers, "<answer>\nbad" in bad.prompt[1]["content"]) == (["As an AI I like bananas."], True)
    assert ledger["judge"]["model_calls"] == 2
    assert ledger["judge"]["completion_tokens"] == 2 + 6
    assert ledger["model_calls"] == 4
    assert (ledger["total"]["model_calls"], ledger["total"]["completion_tokens"]) == (6, ledger["completion_tokens"] + 8)
    assert made[0].completion.usage == Usage(calls=1, prompt_tokens=1, completion_tokens=1)
    assert {name: step["model_calls"] for name, step in ledger["by_pipeline_step"].items()} == {"unnamed": 4, "filters.judge": 2}


def test_a_judge_that_died_ends_the_block(tmp_path: Path) -> None:
    llm = JudgedLlm(lambda messages: "good" if messages[0]["role"] != "system" else die())

    def die() -> str:
        llm.failure = NoProgress("the engine stood still")
        raise llm.failure

    with pytest.raises(NoProgress, match="stood still"):
        rollouts(llm, ["good"], tmp_path)
