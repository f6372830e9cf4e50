"""A row's edge: what goes wrong with one rollout rejects it, what goes wrong with the model ends the job. No cluster runs."""

from __future__ import annotations

import asyncio
import time

import pyarrow as pa
import pytest

from supertiny.config import TaskConfig
from supertiny.errors import NoProgress
from supertiny.llm.base import Llm
from supertiny.llm.scripted import ScriptedLlm
from supertiny.records import Completion, Message, Prompt, Rollout, Tool, Verdict
from supertiny.rollout.pipeline import TeacherActor
from supertiny.rollout_table import from_table

DEATH = NoProgress("the engine stood still")


class WordTask:
    """Answers with the model's word; the prompts `hang` and `break` do what they say, and `babble` is not accepted."""

    tools: list[Tool] = []  # noqa: RUF012

    def prompts(self, split: str) -> list[Prompt]:
        """None: the tests make their rows."""
        return []

    async def teach(self, prompt: Prompt, llm: Llm) -> Completion:
        """One call."""
        if prompt.id == "hang":
            await asyncio.sleep(3600)
        if prompt.id == "break":
            raise KeyError("room")
        return (await llm.complete(prompt.messages))[0]

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """By the prompt's name."""
        if prompt.id == "babble":
            return Verdict(accepted=False, score=0.25, reason="wordy", evidence=text)
        return Verdict(accepted=True, score=1)


class MortalLlm(ScriptedLlm):
    """A scripted model that a script may kill."""

    failure: BaseException | None = None


def rollouts(names: list[str], llm: MortalLlm, *, timeout_seconds: float = 30.0) -> list[Rollout]:
    actor = TeacherActor(lambda: llm, TaskConfig(path=f"{__name__}:WordTask"), timeout_seconds)
    prompts = [Prompt(id=name, messages=[{"role": "user", "content": name}]) for name in names]
    rows = pa.table(
        {
            "rollout_id": [f"{name}/0" for name in names],
            "index": pa.array([0] * len(names), pa.int32()),
            "prompt": [prompt.model_dump_json() for prompt in prompts],
        }
    )
    return from_table(asyncio.run(actor(rows)), "test")


def shout(messages: list[Message]) -> str:
    return str(messages[-1]["content"]).upper()


def test_a_rollout_has_its_prompts_answer_and_the_tasks_verdict() -> None:
    fine, wordy = rollouts(["fine", "babble"], MortalLlm(shout))
    assert (fine.rollout_id, fine.completion.text, fine.verdict.accepted) == ("fine/0", "FINE", True)
    assert (wordy.verdict.accepted, wordy.verdict.score, wordy.verdict.reason, wordy.verdict.evidence) == (False, 0.25, "wordy", "BABBLE")


def test_rows_are_worked_on_at_the_same_time() -> None:
    started = time.monotonic()
    rollouts(["fine"] * 50, MortalLlm(shout, delay_seconds=0.2))
    assert time.monotonic() - started < 5  # one after another: 10 s


@pytest.mark.parametrize(("name", "reason", "evidence"), [("break", "failed", "KeyError: 'room'"), ("hang", "timed_out", "TimeoutError: ")])
def test_a_pipeline_that_raises_or_hangs_rejects_its_row_alone(name: str, reason: str, evidence: str) -> None:
    bad, fine = rollouts([name, "fine"], MortalLlm(shout), timeout_seconds=0.5)
    assert (bad.verdict.accepted, bad.verdict.reason, bad.verdict.evidence) == (False, reason, evidence)
    assert fine.verdict.accepted


def test_a_model_that_died_ends_the_block_instead_of_rejecting_its_rows() -> None:
    llm = MortalLlm(lambda _: die(llm))

    def die(llm: MortalLlm) -> str:
        llm.failure = DEATH
        raise DEATH

    with pytest.raises(NoProgress, match="stood still"):
        rollouts(["fine", "fine"], llm)
