"""The embedded task: a voice assistant for a smart home and its music."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, cast

from supertiny.errors import ConfigError, MalformedCall, ToolFailure
from supertiny.llm.base import Llm
from supertiny.records import Call, Completion, Message, Prompt, Tool, Verdict
from supertiny.tasks.assistant import curriculum, teacher
from supertiny.tasks.assistant.generator import prompts
from supertiny.tasks.assistant.home import Home, State
from supertiny.tasks.assistant.tools import ARGUMENTS, TOOLS
from supertiny.tasks.assistant.values import Split
from supertiny.tasks.calls import check_schema, grade, parse, render

_SCHEMA_SCORE = -0.9
_WRONG_SCORE = -0.8


class AssistantTask:
    """Prompts, teacher pipeline and verifier of the assistant.

    Args:
        train_prompts: how many prompts the `train` split has.
        heldout_prompts: how many the `heldout` split has.
        seed: of both.
        temperature: at which the teacher pipeline fills in arguments; 0, greedy, is how it is evaluated and served, and above 0 the
            rollouts of one prompt differ.
        top_k: teacher tokens kept at each position of the answer.
    """

    def __init__(
        self, train_prompts: int = 2000, heldout_prompts: int = 2400, seed: int = 0, temperature: float = 0.0, top_k: int = 20
    ) -> None:
        if train_prompts < 1 or heldout_prompts < 1 or top_k < 1 or not 0 <= temperature < math.inf:
            raise ConfigError("task.options: train_prompts, heldout_prompts and top_k are at least 1, temperature at least 0")
        self.tools: list[Tool] = TOOLS
        self._counts = {"train": train_prompts, "heldout": heldout_prompts}
        self._seed = seed
        self._temperature = temperature
        self._top_k = top_k

    def prompts(self, split: str) -> list[Prompt]:
        """The prompts of `train` or `heldout`, which share neither phrasings nor open values.

        Raises:
            ConfigError: there is no such split.
        """
        if split not in self._counts:
            raise ConfigError(f"no split {split}; the assistant has train and heldout")
        return prompts(cast(Split, split), self._counts[split], self._seed)

    async def teach(self, prompt: Prompt, llm: Llm) -> Completion:
        """The teacher pipeline's answer: see `tasks.assistant.teacher`."""
        return await teacher.solve(prompt, llm, self._temperature, self._top_k)

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """Whether the calls do to a simulated home what the reference does."""
        try:
            calls = parse(text)
        except MalformedCall as error:
            return _rejected(-1, "malformed", str(error))
        if not calls and not text.strip():
            return _rejected(-1, "malformed", "an empty answer")
        unknown = [call.name for call in calls if call.name not in ARGUMENTS]
        if unknown:
            return _rejected(_SCHEMA_SCORE, "no_such_tool", f"no such tool: {', '.join(unknown)}")
        try:
            check_schema(calls, TOOLS)
            state = _after(calls)
        except MalformedCall as error:
            return _rejected(_SCHEMA_SCORE, "schema", str(error))
        except ToolFailure as error:
            return _rejected(_SCHEMA_SCORE, "execution", str(error))
        if prompt.reference is None or (bool(calls) == bool(prompt.reference) and state == _after(prompt.reference)):
            return Verdict(accepted=True, score=1)
        return _wrong(calls, prompt.reference)

    def pretraining_examples(self, role: Literal["teacher", "base"], seed: int) -> Iterator[tuple[list[Message], str]]:
        """What the shipped models learnt from: see `tasks.assistant.curriculum`."""
        return curriculum.teacher_examples(seed) if role == "teacher" else curriculum.base_examples(seed)


def _after(calls: list[Call]) -> State:
    """The home's state after the calls, from its fixed first state.

    Raises:
        ToolFailure: a call cannot be executed.
    """
    home = Home()
    for call in calls:
        home.execute(call)
    return home.state


def _wrong(calls: list[Call], reference: list[Call]) -> Verdict:
    """The graded verdict on calls that are sound, and not the right ones."""
    score = max(_WRONG_SCORE, 2 * grade(calls, reference) - 1)
    evidence = f"expected {render(reference) or 'no call'}, got {render(calls) or 'no call'}"
    if not reference:
        return _rejected(score, "call_out_of_scope", evidence)
    if not calls:
        return _rejected(score, "no_call", evidence)
    same_names = sorted(call.name for call in calls) == sorted(call.name for call in reference)
    return _rejected(score, "wrong_arguments" if same_names else "wrong_call", evidence)


def _rejected(score: float, reason: str, evidence: str) -> Verdict:
    return Verdict(accepted=False, score=score, reason=reason, evidence=evidence)
