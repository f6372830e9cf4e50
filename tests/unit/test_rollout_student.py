"""The student's pass: what it is asked, what becomes of its scores, and students that are refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from supertiny.errors import ConfigError, NoProgress, PlanTooBig, PromptRefused
from supertiny.llm.scripted import ScriptedLlm
from supertiny.records import Completion, Message, Prompt, Rollout, StepUsage, Tool, Usage, Verdict
from supertiny.rollout.config import FiltersConfig, LikelihoodConfig
from supertiny.rollout.filters import filter_groups
from supertiny.rollout.ledger import count
from supertiny.rollout.likelihood import Score
from supertiny.rollout.progress import Tally
from supertiny.rollout.student import Scores, StudentActor, check_tokenizer, with_score, write_unscored
from supertiny.rollout_table import to_table

LOGPROBS = {"likely": [-0.1, -0.3], "unlikely": [-4.0, -2.0]}


class StudentLlm(ScriptedLlm):
    """Scores the texts that it knows, refuses one, and dies of another."""

    failure: BaseException | None = None

    def __init__(self) -> None:
        super().__init__(lambda _: "")
        self.asked: list[tuple[Sequence[Message], str, Sequence[Tool]]] = []

    async def score(self, messages: Sequence[Message], text: str, *, tools: Sequence[Tool] = (), logprobs: int = 1) -> Completion:
        """By what it knows."""
        self.asked.append((messages, text, tools))
        if text == "death":
            self.failure = NoProgress("stood still")
            raise self.failure
        if text == "long":
            raise PromptRefused("too long")
        if text == "odd":
            raise TypeError("TextEncodeInput must be text")  # what a tokenizer says of a lone surrogate
        return Completion(text=text, token_logprobs=LOGPROBS.get(text), usage=Usage(prompt_tokens=9, completion_tokens=1))


def rollout(name: str, text: str, *, accepted: bool = True) -> Rollout:
    prompt_id, _, index = name.rpartition("/")
    return Rollout(
        rollout_id=name,
        index=int(index),
        prompt=Prompt(id=prompt_id, messages=[{"role": "user", "content": f"say {text}"}], reference=[]),
        tools=[{"type": "function"}],
        completion=Completion(text=text),
        verdict=Verdict(accepted=accepted, score=1, reason="" if accepted else "wrong_call"),
        seconds=0.0,
        engine_seconds=1.0,
        steps={"answer": StepUsage(engine_seconds=1.0)},
    )


def write_blocks(folder: Path, *blocks: list[Rollout]) -> list[Path]:
    paths = [folder / f"{at}.parquet" for at in range(len(blocks))]
    for path, rows in zip(paths, blocks, strict=True):
        pq.write_table(to_table(rows), path)
    return paths


def scored(folder: Path, llm: StudentLlm, rows: list[Rollout]) -> dict[str, Score]:
    """What the student says of a block of rollouts, by way of the files that Ray Data would read and write."""
    write_unscored(write_blocks(folder, rows), set(), folder / "unscored")
    table = pq.read_table(folder / "unscored" / "rows.parquet")
    result = folder / "scores.parquet"
    pq.write_table(asyncio.run(StudentActor(lambda: llm)(table)), result)
    return Scores([result]).of([row.rollout_id for row in rows])


def test_a_score_is_the_mean_over_the_tokens_for_the_prompt_and_the_tools_of_the_rollout(tmp_path: Path) -> None:
    llm, row = StudentLlm(), rollout("p/0", "likely")
    score = scored(tmp_path, llm, [row])["p/0"]
    assert score.logprob == pytest.approx(-0.2)
    assert llm.asked == [(row.prompt.messages, "likely", row.tools)]
    assert score.steps["filters.likelihood"].usage == Usage(prompt_tokens=9, completion_tokens=1)


def test_where_nobody_was_asked_there_are_no_scores() -> None:
    assert Scores([]).of(["p/0"]) == {}


def test_what_the_student_cannot_take_in_has_no_score_but_a_reason(tmp_path: Path) -> None:
    texts = ("long", "no such text", "likely", "odd")
    scores = scored(tmp_path, StudentLlm(), [rollout(f"p/{at}", text) for at, text in enumerate(texts)])
    assert (scores["p/0"].logprob, scores["p/0"].evidence) == (None, "PromptRefused: too long")
    assert (scores["p/1"].logprob, scores["p/1"].evidence) == (None, "ValueError: the student's engine gave no log-probabilities")
    assert scores["p/2"].logprob is not None
    assert (scores["p/3"].logprob, scores["p/3"].evidence) == (None, "TypeError: TextEncodeInput must be text")


def test_a_student_that_died_ends_the_block(tmp_path: Path) -> None:
    with pytest.raises(NoProgress, match="stood still"):
        scored(tmp_path, StudentLlm(), [rollout("p/0", "death")])


def test_only_what_is_accepted_and_not_scored_yet_is_asked_for_and_each_once(tmp_path: Path) -> None:
    first = [rollout("p/0", "a"), rollout("p/1", "b", accepted=False)]
    second = [rollout("p/0", "a"), rollout("p/2", "c"), rollout("p/3", "d")]
    assert write_unscored(write_blocks(tmp_path, first, second), {"p/3"}, tmp_path / "unscored") == 2
    assert pq.read_table(tmp_path / "unscored" / "rows.parquet").column("rollout_id").to_pylist() == ["p/0", "p/2"]


def test_progress_is_read_off_blocks_of_scores_as_off_blocks_of_rollouts(tmp_path: Path) -> None:
    llm = StudentLlm()
    write_unscored(write_blocks(tmp_path, [rollout("p/0", "likely"), rollout("p/1", "long")]), set(), tmp_path / "unscored")
    table = asyncio.run(StudentActor(lambda: llm)(pq.read_table(tmp_path / "unscored" / "rows.parquet")))
    for part, columns in (("blocks", table.column_names), ("done", ["rollout_id"])):
        (tmp_path / part).mkdir()
        pq.write_table(table.select(columns), tmp_path / part / "a.parquet")
    tally = Tally(tmp_path / "blocks", tmp_path / "done")
    assert (tally.update(), tally.rollouts, tally.accepted, tally.rejected) == (1, 2, 1, {"not_scored": 1})


@pytest.mark.parametrize("error", [ConfigError("num_threads is for CPUs"), PlanTooBig("two workers, one core")])
def test_a_student_that_cannot_be_opened_ends_the_job_with_its_own_error(error: Exception, tmp_path: Path) -> None:
    def open_llm() -> StudentLlm:
        raise error

    write_unscored(write_blocks(tmp_path, [rollout("p/0", "likely")]), set(), tmp_path / "unscored")
    actor = StudentActor(open_llm)
    with pytest.raises(type(error), match=str(error)):
        asyncio.run(actor(pq.read_table(tmp_path / "unscored" / "rows.parquet")))


def filtered(folder: Path, config: LikelihoodConfig, rows: list[Rollout], **filters: bool) -> list[Rollout]:
    """Rollouts after the student and the filters; the layers' counts are checked on the way."""
    scores = scored(folder, StudentLlm(), rows)
    result = filter_groups(
        [with_score(row, scores.get(row.rollout_id)) for row in rows], FiltersConfig(likelihood=config, **filters), scores
    )
    rejected = [row for row in result.rollouts if not row.verdict.accepted]
    assert sum(result.rejected_by_layer.values()) == len(rejected)
    assert result.rejected_by_layer["likelihood"] == sum(row.verdict.reason in ("unlikely", "not_scored") for row in rejected)
    return result.rollouts


ROWS = [rollout("p/0", "unlikely"), rollout("p/1", "likely"), rollout("p/2", "long"), rollout("p/3", "likely", accepted=False)]


def test_unlikely_completions_are_rejected_with_what_the_student_gave_them(tmp_path: Path) -> None:
    result = filtered(tmp_path, LikelihoodConfig(student="s", min_logprob=-1.0), ROWS)
    assert [row.verdict.reason for row in result] == ["unlikely", "", "not_scored", "wrong_call"]
    assert result[0].verdict.evidence == "the student gives it -3 nats a token; min_logprob is -1"
    assert result[2].verdict.evidence == "PromptRefused: too long"
    assert [row.student_logprob for row in result] == [pytest.approx(-3.0), pytest.approx(-0.2), None, None]


def test_only_the_likeliest_texts_of_a_prompt_stay_and_duplicates_are_dropped_after_that(tmp_path: Path) -> None:
    rows = [rollout("p/0", "unlikely"), rollout("p/1", "likely"), rollout("p/2", "likely")]
    result = filtered(tmp_path, LikelihoodConfig(student="s", keep_per_prompt=1), rows, drop_duplicates=True)
    assert [row.verdict.reason for row in result] == ["unlikely", "", "duplicate"]
    assert result[0].verdict.evidence == "the student gives it -3 nats a token, and 1 other texts of the prompt more"


def test_what_the_scoring_took_is_in_the_ledger_under_its_own_step(tmp_path: Path) -> None:
    ledger = count(filtered(tmp_path, LikelihoodConfig(student="s", min_logprob=-1.0), ROWS))
    assert ledger["by_pipeline_step"]["filters.likelihood"]["prompt_tokens"] == 18
    assert ledger["engine_seconds"] == pytest.approx(sum(step["engine_seconds"] for step in ledger["by_pipeline_step"].values()))


def test_a_rollouts_likelihood_is_in_the_table(tmp_path: Path) -> None:
    row = with_score(rollout("p/0", "likely"), Score(logprob=-0.25, evidence="", steps={}))
    assert to_table([row]).column("student_logprob").to_pylist() == [-0.25]


def test_a_student_of_another_tokenizer_or_of_none_is_refused(tmp_path: Path) -> None:
    teacher, same, other, without = (tmp_path / name for name in ("teacher", "same", "other", "without"))
    for folder, contents in ((teacher, {"a": 0}), (same, {"a": 0}), (other, {"a": 1}), (without, None)):
        folder.mkdir()
        if contents is not None:
            (folder / "tokenizer.json").write_text(json.dumps(contents))
    check_tokenizer(teacher, same)
    with pytest.raises(ConfigError, match=r"other/tokenizer.json differs from the teacher's .*take a student of the same tokenizer"):
        check_tokenizer(teacher, other)
    with pytest.raises(ConfigError, match=r"no .*without/tokenizer.json, so nobody can say"):
        check_tokenizer(teacher, without)
