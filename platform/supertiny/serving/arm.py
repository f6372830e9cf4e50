"""The seam between the router and what answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from supertiny.llm.base import Sampling
from supertiny.records import Completion, Message
from supertiny.serving.stream import Piece


class Arm(Protocol):
    """One way of answering a conversation."""

    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, logprobs: int = 0) -> Completion:
        """The whole answer; with `logprobs` of its tokens, where the arm is one model.

        Raises:
            PromptRefused: the engine cannot take this conversation.
            ArmBusy: the queue is full, or no replica is there.
        """

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[Piece]:
        """The answer as it comes; raises as `complete` does."""

    async def starting(self) -> bool:
        """Whether no replica of it is up, so that what came too late may come again."""

    async def check(self) -> None:
        """Generate one token for real; raises where the arm cannot."""
