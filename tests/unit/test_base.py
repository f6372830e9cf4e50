"""The seams: a task by its import path, a scripted model, one rendering of conversations."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from supertiny.config import TaskConfig
from supertiny.errors import ConfigError
from supertiny.llm.base import Llm, Sampling
from supertiny.llm.scripted import ScriptedLlm
from supertiny.records import Completion, Message, Prompt, Usage
from supertiny.tasks.base import load_task

TASK = (
    """
import no_such_library_at_all
""",
    """
class EchoTask:
    tools = []

    def __init__(self, *, word="hello"):
        self.word = word

    def prompts(self, split):
        return []

    async def teach(self, prompt, llm):
        return (await llm.complete(prompt.messages))[0]
""",
)


@pytest.fixture
def echo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The import path of a user's own task module."""
    (tmp_path / "echo_task.py").write_text(TASK[1])
    (tmp_path / "echo_task_without_its_library.py").write_text(TASK[0])
    monkeypatch.syspath_prepend(tmp_path)
    return "echo_task:EchoTask"


def test_a_users_task_is_made_from_its_import_path_and_options(echo: str) -> None:
    task = load_task(TaskConfig(path=echo, options={"word": "bye"}))
    assert task.word == "bye"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "path",
    [
        "no_such_module:Task",
        "echo_task:NoSuchTask",
        "echo_task",
        "",
        ":Task",
        "echo_task.py:EchoTask",
        "echo_task_without_its_library:Task",
    ],
)
def test_a_task_that_cannot_be_imported_is_a_config_error_that_names_it(echo: str, path: str) -> None:
    with pytest.raises(ConfigError, match=r"task\.path .*expected package\.module:Class") as caught:
        load_task(TaskConfig(path=path))
    assert path in str(caught.value)


def test_an_option_that_a_task_does_not_take_is_a_config_error(echo: str) -> None:
    with pytest.raises(ConfigError, match=r"task\.options of echo_task:EchoTask: .*wrod"):
        load_task(TaskConfig(path=echo, options={"wrod": "bye"}))


def test_a_teacher_pipeline_runs_on_a_scripted_model(echo: str) -> None:
    task = load_task(TaskConfig(path=echo))
    llm: Llm = ScriptedLlm(lambda messages: str(messages[-1]["content"]).upper())
    answer = asyncio.run(task.teach(Prompt(id="p", messages=[_user("turn it on")]), llm))
    assert answer == Completion(text="TURN IT ON", usage=Usage(prompt_tokens=3, completion_tokens=3))


def test_a_scripted_model_gives_n_completions_scores_without_tokens_and_raises_what_its_script_raises() -> None:
    def refuses(_: object) -> str:
        raise ValueError("no answer")

    llm = ScriptedLlm(lambda _: "same")
    assert [each.text for each in asyncio.run(llm.complete([_user("x")], n=3))] == ["same"] * 3
    scored = asyncio.run(llm.score([_user("x")], "given", logprobs=5))
    assert (scored.text, scored.token_ids, scored.top_k) == ("given", [], None)
    with pytest.raises(ValueError, match="no answer"):
        asyncio.run(ScriptedLlm(refuses).complete([_user("x")]))


def test_a_scripted_models_delays_overlap() -> None:
    llm = ScriptedLlm(lambda _: "x", delay_seconds=0.2)

    async def many() -> None:
        await asyncio.gather(*(llm.complete([_user("x")]) for _ in range(20)))

    started = time.monotonic()
    asyncio.run(many())
    assert 0.2 <= time.monotonic() - started < 20 * 0.2  # one after the other


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


@pytest.mark.parametrize("seed", [2**63, -(2**64), 2**62])
def test_a_seed_that_would_end_the_engine_is_the_rows_fault(seed: int) -> None:
    with pytest.raises(ValueError, match="seed"):
        Sampling(seed=seed)
