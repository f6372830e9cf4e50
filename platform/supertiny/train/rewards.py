"""What a completion is worth to reinforcement learning: several rewards by name, each in [-1, 1], weighted by the config.

`format`, `calls` and `arguments` are the parts of STAR's graded reward (arXiv 2602.03022), one by one; the task's own verifier grades all
of them in one number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from supertiny.errors import MalformedCall
from supertiny.llm.chat import completion_token_ids
from supertiny.records import Call, Prompt
from supertiny.tasks.base import Task
from supertiny.tasks.calls import argument_similarity, check_schema, name_overlap, parse, render


@dataclass(frozen=True)
class Answer:
    """A completion as the rewards see it; one that was cut is judged as it stands."""

    prompt: Prompt
    """With a reference."""
    text: str
    num_tokens: int
    """The end of the turn included."""
    reference_tokens: int
    """Tokens of the reference's calls, written in full, the end of the turn included."""
    max_tokens: int
    """Where a completion is cut."""

    @property
    def reference(self) -> list[Call]:
        """The right calls."""
        return self.prompt.reference or []


Reward = Callable[[Answer, Task], float]


def verifier(answer: Answer, task: Task) -> float:
    """The graded score of the task's verifier."""
    return task.verify(answer.prompt, answer.text).score


def accepted(answer: Answer, task: Task) -> float:
    """1 where the task's verifier accepts, else -1: the binary reward."""
    return 1.0 if task.verify(answer.prompt, answer.text).accepted else -1.0


def format_(answer: Answer, task: Task) -> float:
    """-1 for nothing and for what cannot be parsed, 0 for calls that no tool's schema takes, else 1."""
    given = _parsed(answer)
    if given is None:
        return -1.0
    try:
        check_schema(given, task.tools)
    except MalformedCall:
        return 0.0
    return 1.0


def calls(answer: Answer, task: Task) -> float:
    """Overlap of the called names with the reference's (IoU), from -1, none, to 1, the same; -1 for what cannot be parsed."""
    return _graded(answer, name_overlap)


def arguments(answer: Answer, task: Task) -> float:
    """Mean F1 of the arguments of same-named calls, from -1, none alike, to 1, the same; -1 for what cannot be parsed."""
    return _graded(answer, argument_similarity)


def length(answer: Answer, task: Task) -> float:
    """0 up to the reference's tokens; beyond, it falls in a straight line to -1 where a completion is cut.

    0 also where nothing is to be called, since no text is the reference there. It says nothing of what is in a completion, so it needs
    another reward beside it.
    """
    if not answer.reference:
        return 0.0
    spare = max(1, answer.max_tokens - answer.reference_tokens)
    return -min(1.0, max(0.0, (answer.num_tokens - answer.reference_tokens) / spare))


def _graded(answer: Answer, similarity: Callable[[Sequence[Call], Sequence[Call]], float]) -> float:
    given = _parsed(answer)
    return -1.0 if given is None else 2 * similarity(given, answer.reference) - 1


def _parsed(answer: Answer) -> list[Call] | None:
    """The calls of a completion; None where it is empty or malformed."""
    try:
        return parse(answer.text) if answer.text.strip() else None
    except MalformedCall:
        return None


REWARDS: dict[str, Reward] = {
    "verifier": verifier,
    "accepted": accepted,
    "format": format_,
    "calls": calls,
    "arguments": arguments,
    "length": length,
}
"""By the name that a config gives a weight to."""


class TrlReward:
    """One reward of a task, as TRL calls for it.

    Args:
        name: key of `REWARDS`.
        prompts: with references, by `Prompt.id`; a row of TRL's data set has its id in the column `prompt_id`.
        max_tokens: where completions are cut.
    """

    def __init__(self, name: str, task: Task, prompts: Sequence[Prompt], tokenizer: Any, max_tokens: int) -> None:
        self.__name__ = name  # TRL names its metrics after the function
        self._reward = REWARDS[name]
        self._task = task
        self._prompts = {prompt.id: prompt for prompt in prompts}
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens

    def __call__(self, completion_ids: Sequence[Sequence[int]], prompt_id: Sequence[str], **_: Any) -> list[float | None]:
        """One number a completion."""
        return [self.score(ids, name) for ids, name in zip(completion_ids, prompt_id, strict=True)]

    def score(self, token_ids: Sequence[int], prompt_id: str) -> float:
        """The reward of one completion's tokens."""
        return self._reward(self._answer(token_ids, self._prompts[prompt_id]), self._task)

    def _answer(self, token_ids: Sequence[int], prompt: Prompt) -> Answer:
        return Answer(
            prompt=prompt,
            text=completion_text(token_ids, self._tokenizer),
            num_tokens=len(token_ids),
            reference_tokens=len(completion_token_ids(self._tokenizer, render(prompt.reference or []))),
            max_tokens=self._max_tokens,
        )


def completion_text(token_ids: Sequence[int], tokenizer: Any) -> str:
    """A completion's text, without the token that ends the turn."""
    ids = list(token_ids)
    if ids and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    text: str = tokenizer.decode(ids, skip_special_tokens=False)
    return text
