"""The teacher pipelines that we ship name their steps."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

from examples.single_call import ConvertTask
from examples.three_steps import OrdersTask

from supertiny.llm.scripted import ScriptedLlm
from supertiny.records import Call, Message, Prompt
from supertiny.rollout.meter import Clock, Meter
from supertiny.tasks.assistant.task import AssistantTask
from supertiny.tasks.base import Task
from supertiny.tasks.calls import render
from supertiny.tasks.files.task import FileTask

KITCHEN = {"room": "kitchen", "power": "on"}
PLAY = {"type": "function", "function": {"name": "play", "parameters": {"type": "object", "properties": {"artist": {"type": "string"}}}}}


def steps(task: Task, prompt: Prompt, *answers: str) -> dict[str, int]:
    """Calls of a model that answers in turn, by pipeline step."""
    left = list(answers)
    meter = Meter(ScriptedLlm(lambda _: left.pop(0)), Clock())
    asyncio.run(task.teach(prompt, meter))
    return {name: step.usage.calls for name, step in meter.steps.items()}


def asked(text: str, calls: Sequence[Call] | None = None) -> Prompt:
    messages: list[Message] = [{"role": "user", "content": text}]
    return Prompt(id="p", messages=messages, reference=None if calls is None else list(calls))


def test_the_assistants_are_route_fill_repair_answer_and_score() -> None:
    stable, kitchen = json.dumps(KITCHEN | {"room": "stable"}), json.dumps(KITCHEN)
    other = render([Call(name="set_light", arguments=KITCHEN | {"power": "off"})])
    found = steps(AssistantTask(), asked("Light on in the kitchen"), "set_light", stable, kitchen, other)
    assert found == {"route": 1, "fill": 1, "repair": 1, "answer": 1, "score": 1}


def test_those_of_a_task_from_files_are_draft_redraft_and_score(tmp_path: Path) -> None:
    (tmp_path / "tools.json").write_text(json.dumps([PLAY]))
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"id": "a", "prompt": "Play Björk"}))
    task = FileTask(root=str(tmp_path), tools="tools.json", prompts="prompts.jsonl", redrafts=1)
    drafts = [render([Call(name="play", arguments={"artist": artist})]) for artist in ("Prince", "Björk")]
    assert steps(task, asked("Play Björk"), *drafts) == {"draft": 1, "redraft": 1, "score": 1}


def test_those_of_the_orders_are_columns_query_check_and_score() -> None:
    sql = "SELECT COUNT(*) FROM orders WHERE city = 'Lima'"
    assert steps(OrdersTask(), asked("how many?"), "city", sql, sql) == {"columns": 1, "query": 1, "check": 1, "score": 1}


def test_that_of_the_conversions_is_answer() -> None:
    assert steps(ConvertTask(), asked("how far?"), "far") == {"answer": 1}
