"""A teacher pipeline of three steps with execution feedback: questions about a shop's orders become SQL.

PYTHONPATH=platform:. python jobs/rollout.py --set task.path=examples.three_steps:OrdersTask --set teacher=/models/my-teacher

Each step is one call of the teacher:

    columns  -> which columns the question is about
    query    -> a query, which is then run on the orders
    check    -> the same query or a better one, now that its rows, or the database's error, are known; again while it fails

The student replaces all of it by one call of the tool `query_orders`.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from supertiny.errors import MalformedCall, ToolFailure
from supertiny.llm.base import Llm, Sampling, pipeline_step
from supertiny.records import Call, Completion, Message, Prompt, Tool, Usage, Verdict
from supertiny.tasks.calls import check_schema, parse, render

SCHEMA = "CREATE TABLE orders (id INTEGER, customer TEXT, city TEXT, product TEXT, quantity INTEGER, price_usd REAL)"
QUERY_ORDERS: Tool = {
    "type": "function",
    "function": {
        "name": "query_orders",
        "description": f"Run a SELECT on a SQLite database: {SCHEMA}",
        "parameters": {
            "type": "object",
            "properties": {"sql": {"type": "string"}},
            "required": ["sql"],
            "additionalProperties": False,
        },
    },
}
CITIES = ("Berlin", "Lagos", "Lima", "Osaka", "Pune")
CUSTOMERS = ("Ada", "Bo", "Chidi", "Dao", "Eva", "Femi", "Gita", "Hugo")
PRODUCTS = ("lamp", "desk", "chair", "shelf", "sofa")
QUESTIONS = {
    "how many orders came from {city}?": "SELECT COUNT(*) FROM orders WHERE city = '{city}'",
    "what has {customer} spent in total?": "SELECT SUM(quantity * price_usd) FROM orders WHERE customer = '{customer}'",
    "who ordered a {product} in {city}?": "SELECT DISTINCT customer FROM orders WHERE product = '{product}' AND city = '{city}'",
    "which cities has {customer} ordered a {product} from?": (
        "SELECT DISTINCT city FROM orders WHERE customer = '{customer}' AND product = '{product}'"
    ),
    "how many {product}s has {customer} bought in {city}?": (
        "SELECT SUM(quantity) FROM orders WHERE product = '{product}' AND customer = '{customer}' AND city = '{city}'"
    ),
}
_ALLOWED = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE)
_MOST_ROWS = 50
_LONGEST_VALUE = 10_000
_MOST_STEPS = 1_000_000
"""Of SQLite's virtual machine, a query; a join of the orders with themselves four times over would take minutes."""


class OrdersTask:
    """Questions about orders; the verifier compares what the queries find.

    Args:
        checks: times that the teacher may look at its query's outcome and write another one.
        temperature: of the query; the other steps are greedy.
        top_k: teacher tokens kept at each position of the answer.
    """

    tools: list[Tool] = [QUERY_ORDERS]  # noqa: RUF012 - the protocol's

    def __init__(self, checks: int = 2, temperature: float = 0.7, top_k: int = 20) -> None:
        self._checks, self._temperature, self._top_k = checks, temperature, top_k

    def prompts(self, split: str) -> list[Prompt]:
        """Every question about every customer, city and product; a fifth of them, the same ones each time, is held out."""
        named = [(f"orders-{at}", *pair) for at, pair in enumerate(_questions())]
        held_out = set(random.Random(0).sample(range(len(named)), len(named) // 5))
        return [_prompt(*each) for at, each in enumerate(named) if (at in held_out) == (split == "heldout")]

    async def teach(self, prompt: Prompt, llm: Llm) -> Completion:
        """The query that the teacher settles on, in the student's format, with the teacher's top-k over it."""
        question = str(prompt.messages[-1]["content"])
        columns, usage = await _ask(llm, "columns", f"{SCHEMA}\nWhich columns does this question need? Their names only.\n{question}")
        request = f"{SCHEMA}\nColumns: {columns}\nOne SQLite SELECT that answers this, and nothing else.\n{question}"
        sql, more = await _ask(llm, "query", request, self._temperature)
        usage += more
        for _ in range(self._checks):
            outcome, failed = _outcome(sql)
            feedback = f"Your query: {sql}\nIts outcome: {outcome}\nThe same query, or a better one:"
            checked, more = await _ask(llm, "check", f"{request}\n{feedback}")
            usage += more
            settled, sql = checked == sql and not failed, checked
            if settled:
                break
        text = render([Call(name="query_orders", arguments={"sql": sql})])
        with pipeline_step("score"):
            scored = await llm.score(prompt.messages, text, tools=self.tools, logprobs=self._top_k)
        return scored.model_copy(update={"text": text, "usage": usage + scored.usage})

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """Whether the one query finds the rows that the reference finds, in any order."""
        try:
            calls = parse(text)
            check_schema(calls, self.tools)
        except MalformedCall as error:
            return Verdict(accepted=False, score=-1, reason="malformed", evidence=str(error))
        if len(calls) != 1:
            return Verdict(accepted=False, score=-0.9, reason="no_call", evidence=f"{len(calls)} calls, expected one")
        try:
            found = run(calls[0].arguments["sql"])
        except ToolFailure as error:
            return Verdict(accepted=False, score=-0.5, reason="execution", evidence=str(error))
        expected = run((prompt.reference or calls)[0].arguments["sql"])
        if sorted(map(repr, found)) == sorted(map(repr, expected)):
            return Verdict(accepted=True, score=1)
        return Verdict(accepted=False, score=0, reason="wrong_rows", evidence=f"expected {expected[:3]}, got {found[:3]}")


def run(sql: str) -> list[tuple[Any, ...]]:
    """The rows that a query finds in the shop's orders.

    Raises:
        ToolFailure: it is no SELECT, SQLite refuses it, it takes too many steps, or it finds too much.
    """
    with _orders() as database:
        try:
            cursor = database.execute(sql)
            rows = cursor.fetchmany(_MOST_ROWS + 1)
        except (sqlite3.Error, sqlite3.Warning, UnicodeEncodeError) as error:
            raise ToolFailure(f"{error}") from None
    if cursor.description is None:
        raise ToolFailure("no SELECT")
    if len(rows) > _MOST_ROWS:
        raise ToolFailure(f"more than {_MOST_ROWS} rows")
    return rows


@contextmanager
def _orders() -> Iterator[sqlite3.Connection]:
    """A fresh copy of the orders that takes nothing but SELECT, and cuts that off after a while."""
    database, draw = sqlite3.connect(":memory:"), random.Random("orders")
    try:
        database.execute(SCHEMA)
        rows = ((at, *map(draw.choice, (CUSTOMERS, CITIES, PRODUCTS)), draw.randint(1, 5), draw.randint(20, 400)) for at in range(300))
        database.executemany("INSERT INTO orders VALUES (?, ?, ?, ?, ?, ?)", rows)
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_VALUE)
        database.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK if action in _ALLOWED else sqlite3.SQLITE_DENY)
        database.set_progress_handler(lambda: 1, _MOST_STEPS)
        yield database
    finally:
        database.close()


async def _ask(llm: Llm, step: str, request: str, temperature: float = 0.0) -> tuple[str, Usage]:
    messages: list[Message] = [{"role": "user", "content": request}]
    with pipeline_step(step):
        answer = (await llm.complete(messages, sampling=Sampling(temperature=temperature, max_tokens=128)))[0]
    return answer.text.strip().removeprefix("```sql").strip("`").strip(), answer.usage


def _outcome(sql: str) -> tuple[str, bool]:
    """What the teacher is shown of a query, and whether it failed."""
    try:
        return str(run(sql)[:3]), False
    except ToolFailure as error:
        return f"error: {error}", True


def _questions() -> list[tuple[str, str]]:
    """Every question and its query, once."""
    values = [{"city": city, "customer": customer, "product": product} for city in CITIES for customer in CUSTOMERS for product in PRODUCTS]
    return list({question.format(**each): sql.format(**each) for question, sql in QUESTIONS.items() for each in values}.items())


def _prompt(name: str, question: str, sql: str) -> Prompt:
    return Prompt(id=name, messages=[{"role": "user", "content": question}], reference=[Call(name="query_orders", arguments={"sql": sql})])
