"""The seam to large models: everything that a teacher pipeline may ask of one."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from pydantic import Field

from supertiny.records import Completion, Message, Record, Tool, Usage

UNNAMED = "unnamed"
"""The pipeline step of calls that nobody named."""
_STEP: ContextVar[str] = ContextVar("pipeline_step", default=UNNAMED)
_STEP_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


class Sampling(Record):
    """How completions are drawn."""

    temperature: float = Field(0.0, ge=0)
    """0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(256, gt=0)
    fit_context: bool = False
    """Where the model's context has no room for `max_tokens`, a served engine draws fewer instead of refusing the prompt."""
    stop: tuple[str, ...] = ()
    """Texts that end the completion, and are no part of it. One that is cut so comes without `token_ids` and `top_k`: those that were drawn
    are not its text's. `Llm.score` gives them."""
    seed: int | None = Field(None, ge=-(2**62), lt=2**62)
    """Of one of several completions the next number each; an engine takes 64 bits, and dies of more."""
    json_schema: dict[str, Any] | None = None
    """The completion is JSON that this schema takes, such as `supertiny.tasks.calls.call_schema` of the tools; None leaves it free. With
    one an engine gives no `logprobs`, which would be those of the tokens that the schema allows: `Llm.score` gives them."""


GREEDY = Sampling()


def spent(error: asyncio.CancelledError) -> Usage:
    """What a cancelled call had used, where its engine knows and raised `CancelledError(usage)`; else nothing.

    A class of its own would be better to read, but `asyncio.timeout` takes none but the original.
    """
    return next((said for said in error.args if isinstance(said, Usage)), Usage(calls=0))


@contextmanager
def pipeline_step(name: str) -> Iterator[None]:
    """Name the model calls made inside, so that a rollout's ledger counts them by it; elsewhere it does nothing.

        with pipeline_step("route"):
            routed = await llm.complete(...)

    Raises:
        ValueError: the name is not one of a few snake_case words.
    """
    if not _STEP_NAME.fullmatch(name):
        raise ValueError(f"pipeline step {name!r}: expected up to 40 of a-z, 0-9 and _, such as route; one name a step, not one a prompt")
    token = _STEP.set(name)
    try:
        yield
    finally:
        _STEP.reset(token)


def current_step() -> str:
    """The pipeline step that a call made here belongs to."""
    return _STEP.get()


class Llm(Protocol):
    """A chat model."""

    async def complete(
        self, messages: Sequence[Message], *, tools: Sequence[Tool] = (), n: int = 1, sampling: Sampling = GREEDY, logprobs: int = 0
    ) -> list[Completion]:
        """`n` completions of a conversation; with `logprobs` = K > 0, each with the top K tokens at every position, at temperature 1.

        Their usage adds up to what the call took. Where it is cancelled, an engine that knows what it took until then says so (`spent`).
        """

    async def score(self, messages: Sequence[Message], text: str, *, tools: Sequence[Tool] = (), logprobs: int = 1) -> Completion:
        """A given answer as this model sees it: its tokens, end of turn included, each with the top K tokens, in one prefill.

        An engine that cannot do this returns the completion without `token_ids` and `top_k`.
        """
