"""A task of short rows, for tests of the rollout's graph: one call, and everything is accepted."""

from __future__ import annotations

from supertiny.llm.base import Llm
from supertiny.records import Completion, Prompt, Tool, Verdict


class ShortTask:
    """Prompts p0000000, p0000001, ..."""

    tools: list[Tool] = []  # noqa: RUF012

    def __init__(self, num_prompts: int) -> None:
        self._num_prompts = num_prompts

    def prompts(self, split: str) -> list[Prompt]:
        """The same prompts for every split."""
        return [Prompt(id=f"p{at:07d}", messages=[{"role": "user", "content": f"say {at}"}]) for at in range(self._num_prompts)]

    async def teach(self, prompt: Prompt, llm: Llm) -> Completion:
        """One call."""
        return (await llm.complete(prompt.messages))[0]

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """Yes."""
        return Verdict(accepted=True, score=1)
