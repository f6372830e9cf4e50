"""A row's edge: what goes wrong with one rollout rejects it, what goes wrong with the model ends the job. No cluster runs.

Every test starts a real process for the pipelines; the tasks here hang, crash and babble in it.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow as pa
import pytest

from supertiny.config import TaskConfig, validate
from supertiny.errors import ConfigError, NoProgress
from supertiny.llm.base import Llm, pipeline_step
from supertiny.llm.scripted import ScriptedLlm
from supertiny.records import Call, Completion, Message, Prompt, Rollout, Tool, TopK, Usage, Verdict
from supertiny.rollout.config import RolloutConfig
from supertiny.rollout.teacher import TeacherActor
from supertiny.rollout_table import from_table, to_table
from supertiny.tasks.calls import render

DEATH = NoProgress("the engine stood still")
ECHO = {"type": "function", "function": {"name": "echo", "parameters": {"type": "object", "properties": {"word": {"type": "string"}}}}}


class WordTask:
    """Answers with the model's word and accepts everything; a prompt named after a mischief does it.

    Args:
        asked: file that gets a line as a prompt is taught: its process, and the child's that it leaves behind.
    """

    tools: list[Tool] = [ECHO]  # noqa: RUF012

    def __init__(self, asked: str) -> None:
        self._asked = Path(asked)

    def prompts(self, split: str) -> list[Prompt]:
        """None: the tests make their rows."""
        return []

    async def teach(self, prompt: Prompt, llm: Llm) -> Completion:
        """One call."""
        child = subprocess.Popen(["sleep", "3600"]).pid if prompt.id == "leave a child" else 0
        with self._asked.open("a") as file:
            file.write(f"{os.getpid()} {child}\n")
        answer = (await llm.complete(prompt.messages))[0]
        if prompt.id == "stepwise":
            with pipeline_step("again"):
                await llm.complete(prompt.messages, n=2)
        if prompt.id in WAITS:
            await WAITS[prompt.id]()
        MISCHIEF.get(prompt.id, lambda: None)()
        if prompt.id == "other type":
            return 7  # type: ignore[return-value]
        return answer.model_copy(update=ANSWERS.get(prompt.id, {}))

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """By the prompt's name."""
        if prompt.id == "babble":
            return Verdict(accepted=False, score=0.25, reason="wordy", evidence=text)
        if prompt.id == "verifier hangs":
            time.sleep(3600)
        if prompt.id == "verifier raises":
            raise IndexError("no such light")
        return Verdict(accepted=True, score=1, evidence="e" * 10_000_000 if prompt.id == "long evidence" else "")


async def be_stubborn() -> None:
    """Wait for ever, whoever asks to stop."""
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            continue


async def cancel_myself() -> None:
    """What a task group does whose member failed."""
    raise asyncio.CancelledError


def spin() -> None:
    """Never give the lock away for long."""
    while True:
        pass


def match_for_ever() -> None:
    """Never give the lock away at all: a regular expression that backtracks 2**60 times."""
    re.match(r"(a+)+$", "a" * 60 + "b")


def raise_nonsense() -> None:
    """An error that cannot be pickled, and whose message cannot be had."""

    class NonsenseError(Exception):
        def __str__(self) -> str:
            raise ValueError

    raise NonsenseError


def break_down() -> None:
    """What most tools do."""
    raise KeyError("room")


WAITS: dict[str, Callable[[], Awaitable[None]]] = {
    "hang": lambda: asyncio.sleep(3600),
    "stubborn": be_stubborn,
    "hang in a thread": lambda: asyncio.to_thread(time.sleep, 3600),
    "work in a thread": lambda: asyncio.to_thread(time.sleep, 0.01),
    "cancelled": cancel_myself,
}
MISCHIEF: dict[str, Callable[[], object]] = {
    "break": break_down,
    "nonsense": raise_nonsense,
    "quit": lambda: sys.exit(3),
    "leave a child": lambda: time.sleep(3600),
    "sleep": lambda: time.sleep(3600),
    "spin": spin,
    "regex": match_for_ever,
    "exit": lambda: os._exit(3),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "recursion": lambda: (lambda again: again(again))(lambda again: again(again)),
}
ANSWERS: dict[str, dict[str, object]] = {
    "10 MB": {"text": "x" * 10_000_000},
    "other tokens": {"token_ids": [1, 2], "top_k": TopK(ids=[[1]], logprobs=[[0.0]])},
    "malformed": {"text": "<tool_call>{"},
    "cut off": {"text": "and then I", "finish_reason": "length"},
    "no such tool": {"text": render([Call(name="shout")])},
    "bad schema": {"text": render([Call(name="echo", arguments={"word": 7})])},
}


class MortalLlm(ScriptedLlm):
    """A scripted model that a script may kill."""

    failure: BaseException | None = None


def rollouts(
    names: Sequence[str],
    folder: Path,
    llm: MortalLlm | None = None,
    *,
    timeout_seconds: float = 60.0,
    blocking_seconds: float = 60.0,
    task: str = "WordTask",
    contents: Mapping[str, str] | None = None,
    **filters: object,
) -> list[Rollout]:
    """What an actor makes of prompts by these names, in their order; they say their names unless `contents` has other words."""
    layout = {"row_timeout_seconds": timeout_seconds, "blocking_timeout_seconds": blocking_seconds}
    task_config = TaskConfig(path=f"{__name__}:{task}", options={"asked": str(folder / "asked")})
    config = validate(RolloutConfig, {"task": task_config, "layout": layout, "filters": filters}, "test")
    prompts = [Prompt(id=name, messages=[{"role": "user", "content": (contents or {}).get(name, name)}]) for name in names]
    rows = pa.table(
        {
            "rollout_id": [f"{name}/0" for name in names],
            "index": pa.array([0] * len(names), pa.int32()),
            "prompt": [json.dumps(prompt.model_dump()) for prompt in prompts],
        }
    )

    async def run() -> pa.Table:
        actor = TeacherActor(lambda: llm or MortalLlm(shout), config)
        try:
            return await actor(rows)
        finally:
            await actor.aclose()

    return from_table(asyncio.run(run()), "test")


def shout(messages: Sequence[Message]) -> str:
    return str(messages[-1]["content"]).upper()


def test_a_rollout_has_its_prompts_answer_the_tasks_verdict_and_what_its_calls_used(tmp_path: Path) -> None:
    fine, wordy = rollouts(["fine", "babble"], tmp_path)
    assert (fine.rollout_id, fine.completion.text, fine.verdict.accepted) == ("fine/0", "FINE", True)
    assert (wordy.verdict.accepted, wordy.verdict.score, wordy.verdict.reason, wordy.verdict.evidence) == (False, 0.25, "wordy", "BABBLE")
    assert fine.completion.usage == Usage(calls=1, prompt_tokens=1, completion_tokens=1)


def test_a_pipelines_named_steps_reach_the_engines_process_and_the_table(tmp_path: Path) -> None:
    stepwise, fine = rollouts(["stepwise", "fine"], tmp_path)
    assert {name: step.usage for name, step in stepwise.steps.items()} == {
        "unnamed": Usage(calls=1, prompt_tokens=1, completion_tokens=1),
        "again": Usage(calls=2, prompt_tokens=2, completion_tokens=2),
    }
    assert list(fine.steps) == ["unnamed"]
    assert stepwise.engine_seconds == pytest.approx(sum(step.engine_seconds for step in stepwise.steps.values()))


class CountingLlm(MortalLlm):
    """Remembers how many calls were in flight at once."""

    in_flight = most_in_flight = 0

    async def complete(self, messages: Sequence[Message], **options: Any) -> list[Completion]:
        """As the scripted model's."""
        self.in_flight += 1
        self.most_in_flight = max(self.in_flight, self.most_in_flight)
        completions = await super().complete(messages, **options)
        self.in_flight -= 1
        return completions


def test_rows_are_worked_on_at_the_same_time_and_share_the_engines_time(tmp_path: Path) -> None:
    llm = CountingLlm(shout, delay_seconds=0.5)
    started = time.monotonic()
    made = rollouts(["fine"] * 50, tmp_path, llm)
    assert llm.most_in_flight > 25
    assert 0 < sum(row.engine_seconds for row in made) < time.monotonic() - started


class EndlessLlm(MortalLlm):
    """Never answers; cancelled, it says what it had used."""

    async def complete(self, messages: Sequence[Message], **options: Any) -> list[Completion]:
        """Never, and it takes its time to stop."""
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await asyncio.sleep(0.2)
            raise asyncio.CancelledError(Usage(prompt_tokens=5, completion_tokens=2)) from None
        return []


def test_a_call_that_was_under_way_when_its_row_was_given_up_is_paid_for(tmp_path: Path) -> None:
    (row,) = rollouts(["fine"], tmp_path, EndlessLlm(shout), timeout_seconds=1)
    assert row.verdict.reason == "timed_out"
    assert row.completion.usage == Usage(calls=1, prompt_tokens=5, completion_tokens=2)


NONSENSE = {
    "break": ("failed", "KeyError: 'room'"),
    "nonsense": ("failed", "NonsenseError"),
    "quit": ("failed", "RuntimeError: the pipeline raised SystemExit: 3"),
    "cancelled": ("failed", "CancelledError: "),
    "recursion": ("failed", "RecursionError: maximum recursion depth exceeded"),
    "other type": ("failed", "TypeError: teach returned int, expected Completion"),
    "10 MB": ("failed", "ValueError: an answer of 10000000 characters, at most 1000000 are kept: 'xxx"),
    "other tokens": ("failed", "CorruptArtifact: rollout other tokens/0: 1 teacher logprobs for 2 completion tokens"),
    "verifier raises": ("failed", "IndexError: no such light"),
    "malformed": ("malformed", "a <tool_call> block is not closed"),
    "cut off": ("cut_off", "ran into max_tokens: …and then I"),
    "no such tool": ("schema", "no such tool: shout"),
    "bad schema": ("schema", "echo: 7 is not of type 'string'"),
}


@pytest.fixture(scope="module")
def nonsense(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rollout]:
    """What becomes of all this nonsense in one block, and of a fine row among it."""
    names = [*NONSENSE, "fine"]
    return dict(zip(names, rollouts(names, tmp_path_factory.mktemp("nonsense")), strict=True))


@pytest.mark.parametrize("name", NONSENSE)
def test_a_pipeline_that_raises_or_returns_nonsense_rejects_its_row_alone(name: str, nonsense: dict[str, Rollout]) -> None:
    reason, evidence = NONSENSE[name]
    row = nonsense[name]
    assert (row.verdict.accepted, row.verdict.score, row.verdict.reason) == (False, -1, reason)
    assert row.verdict.evidence.startswith(evidence)
    assert len(row.verdict.evidence) < 2100
    assert row.completion.usage.calls == 1  # paid for all the same
    assert nonsense["fine"].verdict.accepted


@pytest.mark.parametrize("name", ["hang", "stubborn"])
def test_a_pipeline_that_waits_too_long_rejects_its_row_alone(name: str, tmp_path: Path) -> None:
    bad, fine = rollouts([name, "fine"], tmp_path, timeout_seconds=2)
    assert (bad.verdict.reason, bad.verdict.evidence) == ("timed_out", "TimeoutError: the pipeline took longer than 2 s")
    assert fine.verdict.accepted


def test_tools_that_hang_in_threads_take_none_from_others(tmp_path: Path) -> None:
    *hanging, fine = rollouts([*["hang in a thread"] * 50, "work in a thread"], tmp_path, timeout_seconds=3)
    assert {row.verdict.reason for row in hanging} == {"timed_out"}
    assert fine.verdict.accepted


@pytest.mark.parametrize(
    ("name", "frame"), [("sleep", "in <lambda>"), ("spin", "in spin"), ("regex", "in match_for_ever"), ("verifier hangs", "in verify")]
)
def test_synchronous_code_that_never_ends_is_killed_and_named_and_rows_beside_it_begin_again(name: str, frame: str, tmp_path: Path) -> None:
    bad, fine = rollouts([name, "fine"], tmp_path, blocking_seconds=2)
    assert (bad.verdict.accepted, bad.verdict.reason) == (False, "timed_out")
    assert bad.verdict.evidence.startswith("let nothing else run for 2 s, in File ")
    assert frame in bad.verdict.evidence
    assert (fine.completion.text, fine.verdict.accepted) == ("FINE", True)


@pytest.mark.parametrize(("name", "evidence"), [("exit", "with exit status 3"), ("kill", "by SIGKILL")])
def test_a_pipeline_that_ends_its_process_rejects_its_row_alone(name: str, evidence: str, tmp_path: Path) -> None:
    *fine, bad = rollouts(["fine", "also fine", name], tmp_path)
    assert (bad.verdict.reason, evidence in bad.verdict.evidence) == ("crashed", True)
    assert [row.verdict.accepted for row in fine] == [True, True]


@pytest.mark.slow
def test_mischief_after_mischief_comes_to_an_end_with_every_row_accounted_for(tmp_path: Path) -> None:
    names = [*MISCHIEF, "fine", "babble", "hang"]
    made = rollouts(names, tmp_path, timeout_seconds=4, blocking_seconds=2)
    assert [row.prompt.id for row in made] == names
    assert [row.prompt.id for row in made if row.verdict.accepted] == ["fine"]
    assert [row.prompt.id for row in made if not row.verdict.accepted and not row.verdict.reason] == []


def test_prompts_that_are_huge_empty_or_no_utf_8_are_accounted_for(tmp_path: Path) -> None:
    contents = {"huge": "x" * 1_000_001, "empty": "", "no UTF-8": "l\ud800ight"}
    huge, empty, broken, fine = rollouts([*contents, "fine"], tmp_path, contents=contents)
    assert [row.verdict.reason for row in (huge, empty, broken, fine)] == ["failed", "", "failed", ""]
    assert broken.prompt.messages == [{"role": "user", "content": "l\ud800ight"}]
    assert len(huge.verdict.evidence) < 2100


def is_running(process: int) -> bool:
    """Whether there is such a process that has not ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for_end(process: int) -> None:
    while is_running(process):
        time.sleep(0.05)


def test_what_a_tool_started_ends_with_the_process_of_the_pipelines(tmp_path: Path) -> None:
    (bad,) = rollouts(["leave a child"], tmp_path, blocking_seconds=2)
    assert bad.verdict.reason == "timed_out"
    wait_for_end(int((tmp_path / "asked").read_text().split()[1]))


def test_the_process_of_the_pipelines_ends_with_the_engines(tmp_path: Path) -> None:
    code = f"import {__name__}, pathlib; {__name__}.rollouts(['hang'], pathlib.Path({str(tmp_path)!r}))"
    engine = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    while not (tmp_path / "asked").exists() or not (tmp_path / "asked").read_text():
        assert engine.poll() is None
        time.sleep(0.05)
    pipelines = int((tmp_path / "asked").read_text().split()[0])
    assert is_running(pipelines)
    engine.kill()
    engine.wait()
    wait_for_end(pipelines)


def test_it_works_in_a_thread_as_ray_data_calls_it(tmp_path: Path) -> None:
    made: list[Rollout] = []
    thread = Thread(target=lambda: made.extend(rollouts(["fine", "kill"], tmp_path)))
    thread.start()
    thread.join()
    assert [row.verdict.reason for row in made] == ["", "crashed"]


def test_evidence_is_short(tmp_path: Path) -> None:
    (row,) = rollouts(["long evidence"], tmp_path)
    assert row.verdict.accepted
    assert len(row.verdict.evidence) == 2002


def test_the_schema_is_left_to_the_verifier_where_that_is_asked_for(tmp_path: Path) -> None:
    (row,) = rollouts(["bad schema"], tmp_path, check_schema=False)
    assert row.verdict.accepted


def test_a_lone_surrogate_in_a_prompt_comes_through(tmp_path: Path) -> None:
    prompt = Prompt(id="p", messages=[{"role": "user", "content": "l\ud800ight"}])
    table = to_table([some_rollout(prompt)])
    assert from_table(table, "test")[0].prompt == prompt


def some_rollout(prompt: Prompt) -> Rollout:
    verdict = Verdict(accepted=True, score=1)
    return Rollout(rollout_id="p/0", index=0, prompt=prompt, tools=[], completion=Completion(text=""), verdict=verdict, seconds=0.0)


class OnceTask(WordTask):
    """Loads once: in the actor, and then not in the pipelines' process."""

    def __init__(self, asked: str) -> None:
        super().__init__(asked)
        self._asked.touch(exist_ok=False)


def test_a_task_that_no_other_process_can_load_ends_the_job(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"OnceTask cannot be loaded in a process of its own: FileExistsError"):
        rollouts(["fine"], tmp_path, task="OnceTask")


def test_a_model_that_died_ends_the_block_instead_of_rejecting_its_rows(tmp_path: Path) -> None:
    llm = MortalLlm(lambda _: die(llm))

    def die(llm: MortalLlm) -> str:
        llm.failure = DEATH
        raise DEATH

    with pytest.raises(NoProgress, match="stood still"):
        rollouts(["fine", "fine"], tmp_path, llm)
