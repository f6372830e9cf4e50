"""The fake engine that a rollout's config can ask for."""

from __future__ import annotations

import asyncio

from supertiny.llm.config import ScriptedConfig
from supertiny.llm.scripted import ScriptedLlm

HELLO = [{"role": "user", "content": "good morning to you"}]


def test_it_answers_the_same_to_everything_and_counts_words_as_tokens() -> None:
    llm = ScriptedLlm.from_config(ScriptedConfig(answer="yes, do"))
    completions = asyncio.run(llm.complete(HELLO, n=2))
    assert [completion.text for completion in completions] == ["yes, do"] * 2
    assert (completions[0].usage.prompt_tokens, completions[0].usage.completion_tokens) == (4, 2)
    assert llm.failure is None


def test_calls_for_which_there_is_no_place_wait_for_those_under_way() -> None:
    async def go(places: int) -> tuple[int, int]:
        llm = ScriptedLlm.from_config(ScriptedConfig(delay_seconds=0.02, max_num_seqs=places))
        calls = {asyncio.create_task(llm.complete(HELLO)) for _ in range(5)}
        first, others = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        return len(first), len(await asyncio.gather(*others)) + len(first)

    first, all_of_them = asyncio.run(go(places=1))
    assert (first, all_of_them) == (1, 5)
