"""A judge's score as one of the rewards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from supertiny.errors import PromptRefused
from supertiny.llm.base import Llm
from supertiny.llm.config import EndpointConfig
from supertiny.llm.http import HttpLlm
from supertiny.llm.judge import judge
from supertiny.records import Prompt, Tool
from supertiny.train.reward_config import RewardJudgeConfig
from supertiny.train.rewards import completion_text

OpenLlm = Callable[[EndpointConfig], AbstractAsyncContextManager[Llm]]


class JudgeReward:
    """What a model says of completions, as TRL calls for it: -1 for the lowest score of its scale, 1 for the highest.

    Equal completions of a prompt are judged once a step. -1 too where the judge gives no score, or refuses to read the completion: so
    nothing is gained by an answer that confuses it.

    Args:
        prompts: by `Prompt.id`; a row of TRL's data set has its id in the column `prompt_id`.
        open_llm: the model at an endpoint, for one step.
    """

    NAME = "judge"

    def __init__(
        self, prompts: Sequence[Prompt], tools: Sequence[Tool], tokenizer: Any, config: RewardJudgeConfig, open_llm: OpenLlm | None = None
    ) -> None:
        self.__name__ = self.NAME  # TRL names its metrics after the function
        self._prompts = {prompt.id: prompt for prompt in prompts}
        self._tools, self._tokenizer, self._config = tools, tokenizer, config
        self._open_llm = open_llm or at_endpoint

    def __call__(self, completion_ids: Sequence[Sequence[int]], prompt_id: Sequence[str], **_: Any) -> list[float | None]:
        """One number a completion.

        Raises:
            ConfigError, NoProgress: the endpoint does not know us, or failed at every try.
        """
        answers = [(name, completion_text(ids, self._tokenizer)) for ids, name in zip(completion_ids, prompt_id, strict=True)]
        rewards = asyncio.run(self._judge_all(list(dict.fromkeys(answers))))
        return [rewards[answer] for answer in answers]

    async def _judge_all(self, answers: Sequence[tuple[str, str]]) -> dict[tuple[str, str], float]:
        async with self._open_llm(self._config.endpoint) as llm:
            return dict(zip(answers, await asyncio.gather(*(self._judge(llm, *answer) for answer in answers)), strict=True))

    async def _judge(self, llm: Llm, prompt_id: str, text: str) -> float:
        try:
            judgement = await judge(llm, self._prompts[prompt_id], self._tools, text, self._config)
        except PromptRefused:
            return -1.0
        return -1.0 if judgement.score is None else 2 * (judgement.score - 1) / (self._config.max_score - 1) - 1


@asynccontextmanager
async def at_endpoint(endpoint: EndpointConfig) -> AsyncIterator[Llm]:
    """The model at an endpoint; an instance belongs to one event loop, and a step has its own."""
    llm = HttpLlm(endpoint)
    try:
        yield llm
    finally:
        await llm.aclose()
