"""What a completion is worth to reinforcement learning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from supertiny.records import Prompt
from supertiny.tasks.base import Task


class VerifierReward:
    """The task verifier's graded score, in [-1, 1], as TRL calls for it.

    Args:
        prompts: by `Prompt.id`; a row of TRL's data set has its id in the column `prompt_id`.
    """

    __name__ = "verifier"  # TRL names its metrics after the function

    def __init__(self, task: Task, prompts: Sequence[Prompt], tokenizer: Any) -> None:
        self._task = task
        self._prompts = {prompt.id: prompt for prompt in prompts}
        self._tokenizer = tokenizer

    def __call__(self, completion_ids: Sequence[Sequence[int]], prompt_id: Sequence[str], **_: Any) -> list[float | None]:
        """One score a completion."""
        return [self.score(ids, name) for ids, name in zip(completion_ids, prompt_id, strict=True)]

    def score(self, token_ids: Sequence[int], prompt_id: str) -> float:
        """The score of one completion's tokens; one without an end of turn was cut, and is judged as it stands."""
        ids = list(token_ids)
        if ids and ids[-1] == self._tokenizer.eos_token_id:
            ids.pop()
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return self._task.verify(self._prompts[prompt_id], text).score
