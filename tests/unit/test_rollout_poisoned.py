"""A poisoned set: everything that can go wrong with rows goes wrong in one block, and every row is accounted for. No cluster runs."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pyarrow as pa
import pytest
from raw_endpoint import BROKEN, completion, http, raw_endpoint

from supertiny.config import TaskConfig, validate
from supertiny.llm.base import Llm
from supertiny.llm.http import HttpLlm
from supertiny.records import Completion, Prompt, Rollout, Tool, Verdict
from supertiny.rollout.config import RolloutConfig
from supertiny.rollout.filters import filter_groups
from supertiny.rollout.ledger import check_complete, write_tables
from supertiny.rollout.teacher import TeacherActor
from supertiny.rollout_table import from_table, read_rejected, read_rollouts

MEGABYTE = 1_000_000
SAID = {
    "fine": "light on, please",
    "1 MB": "word " * (MEGABYTE // 5),
    "empty": "",
    "no UTF-8": "l\ud800ight",
    "said twice": "what is the weather like in Lima today?",
    "said twice, again": "what is the weather like in Lima today?",
    "refused": "refuse me",
    "broken arguments": "call me wrongly",
    "nested calls": "call me deeply",
    "judged with nonsense": "judge me with nonsense",
    **{f"endpoint: {what}": f"give me {what}" for what in BROKEN},
}
TOOLS = ("tool hangs", "tool blocks", "tool raises", "tool returns 10 MB")
EXPECTED = {
    **dict.fromkeys(SAID, ""),
    "no UTF-8": "failed",
    "said twice, again": "near_duplicate",
    "refused": "failed",
    "broken arguments": "malformed",
    "nested calls": "malformed",
    "judged with nonsense": "no_score",
    "tool hangs": "timed_out",
    "tool blocks": "timed_out",
    "tool raises": "failed",
    "tool returns 10 MB": "failed",
}
"""The reason of each row; an answer that broke on the way was asked for again, so those rows are accepted."""


class PoisonTask:
    """Asks the model; a prompt that is named after a tool calls that tool first."""

    tools: list[Tool] = []  # noqa: RUF012

    def prompts(self, split: str) -> list[Prompt]:
        """None: the test makes its rows."""
        return []

    async def teach(self, prompt: Prompt, llm: Llm) -> Completion:
        """One call of the model, after the tool's."""
        result = await run_tool(prompt.id)
        return (await llm.complete([*prompt.messages, *result]))[0]

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """Accepts everything."""
        return Verdict(accepted=True, score=1)


async def run_tool(name: str) -> list[dict[str, str]]:
    """What the tool says."""
    if name == "tool hangs":
        await asyncio.sleep(3600)
    if name == "tool blocks":
        time.sleep(3600)
    if name == "tool raises":
        raise KeyError("room")
    return [{"role": "tool", "content": "x" * 10 * MEGABYTE}] if name == "tool returns 10 MB" else []


def reply(body: dict[str, Any], times: int) -> bytes:
    """An endpoint that takes at most 5 MB, and breaks where it is asked to, twice."""
    said = str(body["messages"][-1]["content"])
    broken = next((answer for what, answer in BROKEN.items() if f"give me {what}" in said and times < 2), None)
    if len(said) > 5 * MEGABYTE or "refuse me" in said:
        return http(400, b"not this one")
    if broken is not None:
        return broken
    if body["messages"][0]["role"] == "system":
        return http(200, completion("bananas" if "nonsense" in said else "Score: 5"))
    if "call me deeply" in said:
        return http(200, completion('<tool_call>{"name": "f", "arguments": {"a": ' + "[" * 600 + "]" * 600 + "}}</tool_call>"))
    if "call me wrongly" in said:
        message = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}
        return http(200, json.dumps({"choices": [{"message": message}], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}).encode())
    return http(200, completion(f"heard {said[:80]}"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Rollout], dict[str, Any]]:
    """The rows after everything, by name, and the ledger's counts."""
    names, folder = [*SAID, *TOOLS], tmp_path_factory.mktemp("poisoned")
    prompts = [Prompt(id=name, messages=[{"role": "user", "content": SAID.get(name, name)}], reference=[]) for name in names]
    columns = {"rollout_id": [f"{name}/0" for name in names], "index": pa.array([0] * len(names), pa.int32())}
    rows = pa.table({**columns, "prompt": [json.dumps(prompt.model_dump()) for prompt in prompts]})
    with raw_endpoint(reply) as url:
        table = asyncio.run(taught(config_for(url), rows))
    config = config_for(url)
    rollouts = from_table(table, "test")
    check_complete([row.rollout_id for row in rollouts], columns["rollout_id"])
    counts = write_tables(folder, [filter_groups(rollouts, config.filters).rollouts])
    return {row.prompt.id: row for row in read_rollouts(folder) + read_rejected(folder)}, counts


def config_for(url: str) -> RolloutConfig:
    price = {"prompt_usd": 1e6, "cached_usd": 0.0, "completion_usd": 0.0}
    endpoint = {"base_url": url, "model": "m", "max_retries": 2, "first_backoff_seconds": 0.05, "timeout_seconds": 3.0, "price": price}
    values = {
        "task": TaskConfig(path=f"{__name__}:PoisonTask"),
        "endpoint": endpoint,
        "layout": {"row_timeout_seconds": 8.0, "blocking_timeout_seconds": 2.0},
        "filters": {"judge": {}, "max_similarity": 0.8},
    }
    return validate(RolloutConfig, values, "test")


async def taught(config: RolloutConfig, rows: pa.Table) -> pa.Table:
    """The rows through an actor."""
    assert config.endpoint is not None
    llm = HttpLlm(config.endpoint)
    actor = TeacherActor(lambda: llm, config)
    try:
        return await actor(rows)
    finally:
        await actor.aclose()
        await llm.aclose()


@pytest.mark.slow
def test_the_job_ends_and_every_row_is_there_once_with_its_reason(made: tuple[dict[str, Rollout], dict[str, Any]]) -> None:
    rows, counts = made
    assert {name: row.verdict.reason for name, row in rows.items()} == EXPECTED
    assert counts["rollouts"] == counts["accepted"] + counts["rejected"] == len(EXPECTED)
    assert sum(counts["rejected_by_reason"].values()) == counts["rejected"]


@pytest.mark.slow
def test_every_rejected_row_says_what_was_seen_in_a_few_words(made: tuple[dict[str, Rollout], dict[str, Any]]) -> None:
    rejected = {name: row.verdict.evidence for name, row in made[0].items() if not row.verdict.accepted}
    assert [name for name, evidence in rejected.items() if not 0 < len(evidence) < 2100] == []
    assert rejected["tool raises"] == "KeyError: 'room'"
    assert "HTTP 400 not this one" in rejected["tool returns 10 MB"]


@pytest.mark.slow
def test_what_was_answered_is_paid_for_whatever_became_of_the_row(made: tuple[dict[str, Rollout], dict[str, Any]]) -> None:
    rows, counts = made
    assert rows["broken arguments"].completion.usage.prompt_tokens == 7
    assert rows["tool raises"].completion.usage.prompt_tokens == 0
    steps = counts["by_pipeline_step"]
    assert set(steps) == {"unnamed", "filters.judge"}
    for step in steps.values():
        assert step["endpoint_usd"] == step["prompt_tokens"] - step["cached_tokens"]
