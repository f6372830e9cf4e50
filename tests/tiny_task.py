"""A task for tests of the rollout: it answers with the prompt's own number, slowly, and notes who was asked."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from supertiny.llm.base import Llm, Sampling
from supertiny.records import Call, Completion, Prompt, Tool, Verdict
from supertiny.tasks.calls import matches, parse, render


class TinyTask:
    """Prompts p000, p001, ...; nobody knows the right calls.

    Args:
        asked: file that gets a line each time that a prompt is taught: its id, and the process id of the engine that is asked.
        seconds: how long the pipeline waits.
    """

    tools: list[Tool] = [{"type": "function", "function": {"name": "echo", "parameters": {"type": "object"}}}]  # noqa: RUF012

    def __init__(self, num_prompts: int, asked: str, seconds: float) -> None:
        self._num_prompts, self._asked, self._seconds = num_prompts, Path(asked), seconds

    def prompts(self, split: str) -> list[Prompt]:
        """The same prompts for every split."""
        return [Prompt(id=f"p{at:03d}", messages=[{"role": "user", "content": f"say {at}"}]) for at in range(self._num_prompts)]

    async def teach(self, prompt: Prompt, llm: Llm) -> Completion:
        """One sampled completion, thrown away, and the echo of the prompt's number, scored."""
        with self._asked.open("a") as file:
            file.write(f"{prompt.id} {os.getppid()}\n")
        await asyncio.sleep(self._seconds)
        draft = (await llm.complete(prompt.messages, sampling=Sampling(temperature=1.0, max_tokens=4)))[0]
        answer = await llm.score(prompt.messages, render([_echo(prompt)]), tools=self.tools, logprobs=5)
        return answer.model_copy(update={"usage": draft.usage + answer.usage})

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """Accepts the echo, but of no prompt whose number ends in 7."""
        if prompt.id.endswith("7"):
            return Verdict(accepted=False, score=-0.5, reason="unlucky", evidence="7")
        return Verdict(accepted=matches(parse(text), [_echo(prompt)]), score=1)


def _echo(prompt: Prompt) -> Call:
    return Call(name="echo", arguments={"number": int(prompt.id[1:])})
