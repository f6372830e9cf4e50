"""The worked examples: tasks that a config can name, and pipelines that do what their first lines say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import pytest
from examples.single_call import ConvertTask
from examples.three_steps import OrdersTask, run

from supertiny.config import TaskConfig
from supertiny.errors import ToolFailure
from supertiny.llm.scripted import ScriptedLlm
from supertiny.records import Call, Message, Prompt
from supertiny.tasks.base import load_task
from supertiny.tasks.calls import parse, render

TASKS = ["examples.single_call:ConvertTask", "examples.three_steps:OrdersTask"]
RIGHT = "SELECT COUNT(*) FROM orders WHERE city = 'Lima'"
QUESTION = Prompt(
    id="p",
    messages=[{"role": "user", "content": "how many orders came from Lima?"}],
    reference=[Call(name="query_orders", arguments={"sql": RIGHT})],
)


@pytest.mark.parametrize("path", TASKS)
def test_an_example_is_a_task_by_its_path_whose_references_its_verifier_accepts(path: str) -> None:
    task = load_task(TaskConfig(path=path))
    for split in ("train", "heldout"):
        prompts = task.prompts(split)
        assert len({prompt.id for prompt in prompts}) == len(prompts) > 20
        assert [prompt.id for prompt in prompts[:50] if not task.verify(prompt, render(prompt.reference or [])).accepted] == []
        assert prompts == load_task(TaskConfig(path=path)).prompts(split)


@pytest.mark.parametrize("path", TASKS)
def test_what_is_held_out_is_not_trained_on(path: str) -> None:
    task = load_task(TaskConfig(path=path))
    train, heldout = ({str(prompt.messages) for prompt in task.prompts(split)} for split in ("train", "heldout"))
    assert not train & heldout


def test_the_single_call_is_the_answer() -> None:
    task = ConvertTask(num_prompts=1)
    (prompt,) = task.prompts("train")
    answer = asyncio.run(task.teach(prompt, ScriptedLlm(lambda messages: f"heard {messages[-1]['content']}")))
    assert answer.text == f"heard {prompt.messages[0]['content']}"
    assert answer.usage.calls == 1


@pytest.mark.parametrize(
    ("value", "unit", "reason"),
    [(500, "metre", ""), (0.5, "kilometre", ""), (50, "metre", "wrong_arguments"), ("500", "metre", "malformed")],
)
def test_a_conversion_is_judged_by_what_it_gives(value: object, unit: str, reason: str) -> None:
    expected = Call(name="convert", arguments={"value": 500, "source": "metre", "target": "mile"})
    given = Call(name="convert", arguments={"value": value, "source": unit, "target": "mile"})
    verdict = ConvertTask().verify(Prompt(id="p", messages=[], reference=[expected]), render([given]))
    assert (verdict.accepted, verdict.reason) == (not reason, reason)


class Teacher:
    """Answers in turn, and remembers what it was asked."""

    def __init__(self, *answers: str) -> None:
        self.answers, self.asked = list(answers), list[str]()

    def __call__(self, messages: Sequence[Message]) -> str:
        self.asked.append(str(messages[-1]["content"]))
        return self.answers.pop(0)


def taught(teacher: Teacher) -> tuple[str, int]:
    """The query that the pipeline settles on, and its model calls."""
    completion = asyncio.run(OrdersTask().teach(QUESTION, ScriptedLlm(teacher)))
    (call,) = parse(completion.text)
    return call.arguments["sql"], completion.usage.calls


def test_a_query_that_runs_and_is_confirmed_takes_three_steps_and_a_scoring() -> None:
    teacher = Teacher("city", RIGHT, RIGHT)
    assert taught(teacher) == (RIGHT, 4)
    assert "Columns: city" in teacher.asked[1]
    assert f"Its outcome: {run(RIGHT)}" in teacher.asked[2]


def test_a_query_that_fails_is_written_again_with_the_databases_error_in_sight() -> None:
    teacher = Teacher("city", "SELECT COUNT(*) FROM order", f"```sql\n{RIGHT}\n```", RIGHT)
    assert taught(teacher) == (RIGHT, 5)
    assert 'Its outcome: error: near "order": syntax error' in teacher.asked[2]


def test_a_teacher_that_never_finds_a_query_gives_an_answer_that_the_verifier_rejects() -> None:
    sql, calls = taught(Teacher("city", "nonsense", "nonsense", "nonsense"))
    verdict = OrdersTask().verify(QUESTION, render([Call(name="query_orders", arguments={"sql": sql})]))
    assert (calls, verdict.accepted, verdict.reason) == (5, False, "execution")


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("DELETE FROM orders", "not authorized"),
        ("ATTACH '/tmp/orders.db' AS other", "not authorized"),
        ("SELECT zeroblob(100000000)", "too big"),
        ("SELECT 1; SELECT 2", "one statement at a time"),
        ("SELECT * FROM orders", "more than 50 rows"),
        ("SELECT COUNT(*) FROM orders a, orders b, orders c, orders d", "interrupted"),
        ("", "no SELECT"),
    ],
)
def test_a_query_that_is_no_question_is_a_failure_of_the_tool(sql: str, message: str) -> None:
    with pytest.raises(ToolFailure, match=message):
        run(sql)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (render([Call(name="query_orders", arguments={"sql": "SELECT COUNT(id) AS n FROM orders WHERE city IN ('Lima')"})]), ""),
        (render([Call(name="query_orders", arguments={"sql": "SELECT 0"})]), "wrong_rows"),
        (render([Call(name="query_orders", arguments={"query": "SELECT 0"})]), "malformed"),
        ("42", "no_call"),
        (json.dumps({"sql": RIGHT}), "no_call"),
    ],
)
def test_a_query_is_judged_by_the_rows_that_it_finds(text: str, reason: str) -> None:
    verdict = OrdersTask().verify(QUESTION, text)
    assert (verdict.accepted, verdict.reason) == (not reason, reason)
