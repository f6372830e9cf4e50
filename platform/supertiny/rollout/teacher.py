"""The actor that makes rollouts: one model, the teacher pipelines over it in their own process, and the judge."""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import Any, Protocol

import pyarrow as pa

from supertiny.cli import configure_logging
from supertiny.errors import SupertinyError
from supertiny.llm.base import Llm
from supertiny.llm.config import EndpointConfig
from supertiny.llm.http import HttpLlm
from supertiny.llm.judge import judge, judge_messages
from supertiny.records import Completion, Judgement, Message, Prompt, Rollout, Verdict
from supertiny.rollout.config import JudgeConfig, RolloutConfig
from supertiny.rollout.judge import with_judgement
from supertiny.rollout.meter import Clock, Meter
from supertiny.rollout.sandbox import Sandbox
from supertiny.rollout.wire import Start
from supertiny.rollout.worker import clip, describe, rejected
from supertiny.rollout_table import to_table
from supertiny.tasks.base import load_task

JUDGE_STEP = "filters.judge"
"""Where a ledger counts the judge's calls, beside the steps of the pipeline."""
_ROWS_A_PLACE = 2


class FailingLlm(Llm, Protocol):
    """A model that may stop answering for good."""

    failure: BaseException | None
    """What stopped it."""


OpenLlm = Callable[[], FailingLlm]
"""Builds the model inside the actor."""


class UnopenedLlm:
    """A model that could not be built, and says why when it is asked: of what an actor's constructor raises, Ray makes its own error."""

    def __init__(self, failure: SupertinyError) -> None:
        self._why = failure
        self.failure: BaseException | None = failure

    async def complete(self, messages: Sequence[Message], **options: Any) -> list[Completion]:
        """Raises why."""
        raise self._why.with_traceback(None)  # else each row adds to it

    async def score(self, messages: Sequence[Message], text: str, **options: Any) -> Completion:
        """Raises why."""
        raise self._why.with_traceback(None)  # else each row adds to it


def opened(open_llm: OpenLlm) -> FailingLlm:
    """The model, or one that fails with what it raised, if that is an error of ours."""
    try:
        return open_llm()
    except SupertinyError as error:
        return UnopenedLlm(error)


class TeacherActor:
    """One model and the task's teacher pipeline over it, for many rollouts at a time."""

    def __init__(self, open_llm: OpenLlm, config: RolloutConfig) -> None:
        configure_logging()
        atexit.register(be_silent)
        self._tools = load_task(config.task).tools
        self._llm = opened(open_llm)
        self._judge = config.filters.judge
        self._judge_llm = opened(partial(HttpLlm, self._judge.endpoint)) if self._judge and self._judge.endpoint else self._llm
        self._row_timeout_seconds = config.layout.row_timeout_seconds
        limits = (config.layout.row_timeout_seconds, config.layout.blocking_timeout_seconds)
        price = config.endpoint.price if config.endpoint else None
        self._judge_price = self._judge.endpoint.price if self._judge and self._judge.endpoint else price
        clock = Clock()
        self._judge_clock = clock if self._judge_llm is self._llm else Clock(lambda: 0.0)  # another's busy time is not ours
        self._rows, self._judgements = places(config.endpoint), places(self._judge.endpoint if self._judge else None)
        self._sandbox = Sandbox(Start(config.task, config.filters.check_schema, *limits), self._llm, clock, price)

    async def __call__(self, rows: pa.Table) -> pa.Table:
        """The rows' rollouts, judged, as a rollout table."""
        rollouts = await asyncio.gather(*(self._rollout(row) for row in rows.to_pylist()))
        try:
            return to_table(rollouts)
        except (ValueError, OverflowError, pa.ArrowException):
            return to_table([storable(rollout) for rollout in rollouts])

    async def aclose(self) -> None:
        """End the pipelines' process."""
        await self._sandbox.aclose()

    async def _rollout(self, row: dict[str, Any]) -> Rollout:
        async with self._rows:
            return await self._made(row)

    async def _made(self, row: dict[str, Any]) -> Rollout:
        """A row's edge: what goes wrong with one rollout rejects it, what goes wrong with a model ends the job."""
        prompt = Prompt.model_validate(json.loads(row["prompt"]))
        started = time.monotonic()
        solution = await self._sandbox.solve(prompt)
        verdict, judging = solution.verdict, Meter(self._judge_llm, self._judge_clock, JUDGE_STEP, self._judge_price)
        if self._judge is not None and verdict.accepted:
            verdict = await self._judged(judging, prompt, solution.completion.text, verdict, self._judge)
        for llm in (self._llm, self._judge_llm):
            if llm.failure is not None:
                raise llm.failure
        steps = solution.meter.steps | judging.steps
        return Rollout(
            rollout_id=row["rollout_id"],
            index=row["index"],
            prompt=prompt,
            tools=self._tools,
            completion=solution.completion.model_copy(update={"usage": solution.meter.total.usage}),
            verdict=verdict,
            seconds=time.monotonic() - started,
            engine_seconds=sum(step.engine_seconds for step in steps.values()),
            steps=steps,
        )

    async def _judged(self, llm: Meter, prompt: Prompt, text: str, verdict: Verdict, config: JudgeConfig) -> Verdict:
        try:
            async with self._judgements:
                judgement = await asyncio.wait_for(judge(llm, prompt, self._tools, text, config), self._row_timeout_seconds)
        except Exception as error:
            late = TimeoutError(f"the judge took longer than {self._row_timeout_seconds:g} s")
            asked = judge_messages(prompt, self._tools, text, config)
            judgement = Judgement(prompt=asked, answers=[], score=None, usage=llm.total.usage)
            return rejected("judge_failed", describe(late if type(error) is TimeoutError else error)).model_copy(
                update={"judgement": judgement, "score": verdict.score}
            )
        return with_judgement(verdict, judgement, config)


def places(endpoint: EndpointConfig | None) -> AbstractAsyncContextManager[Any]:
    """What a row waits for before its time runs: a few more rows than an endpoint takes requests keep it busy, and hardly wait."""
    return asyncio.Semaphore(_ROWS_A_PLACE * endpoint.max_concurrency) if endpoint else nullcontext()


def be_silent() -> None:
    """Drop what the process still writes while it ends: Triton's bindings list dozens of objects that they leaked."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def storable(rollout: Rollout) -> Rollout:
    """The rollout itself, or rejected without its completion where no table takes that: teacher log-probabilities for other tokens."""
    try:
        to_table([rollout])
    except (ValueError, OverflowError, pa.ArrowException) as error:
        empty = Completion(text="", usage=rollout.completion.usage)
        return rollout.model_copy(update={"completion": empty, "verdict": rejected("failed", clip(describe(error)))})
    return rollout
