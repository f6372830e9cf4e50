"""The seam to large models: everything that a teacher pipeline may ask of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from pydantic import Field

from supertiny.records import Completion, Message, Record, Tool


class Sampling(Record):
    """How completions are drawn."""

    temperature: float = Field(0.0, ge=0)
    """0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(256, gt=0)
    stop: tuple[str, ...] = ()
    seed: int | None = None
    json_schema: dict[str, Any] | None = None
    """The completion is JSON that this schema takes, such as `supertiny.tasks.calls.call_schema` of the tools; None leaves it free."""


GREEDY = Sampling()


class Llm(Protocol):
    """A chat model."""

    async def complete(
        self, messages: Sequence[Message], *, tools: Sequence[Tool] = (), n: int = 1, sampling: Sampling = GREEDY, logprobs: int = 0
    ) -> list[Completion]:
        """`n` completions of a conversation; with `logprobs` = K > 0, each with the top K tokens at every position, at temperature 1."""

    async def score(self, messages: Sequence[Message], text: str, *, tools: Sequence[Tool] = (), logprobs: int = 1) -> Completion:
        """A given answer as this model sees it: its tokens, end of turn included, each with the top K tokens, in one prefill.

        An engine that cannot do this returns the completion without `token_ids` and `top_k`.
        """
