"""The teacher pipeline: draft an answer, check it against schema and prompt, draft again where it fails, score what is kept.

The drafts are in the student's format already, so one skill of the model serves drafting and scoring.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from supertiny.llm.base import Llm, Sampling, pipeline_step
from supertiny.records import Completion, Prompt, Record, Tool
from supertiny.tasks.calls import most_common

REFUSAL = "I can't do that."
_REDRAFT_TEMPERATURE = 0.7


class TeacherSettings(Record):
    """How a prompt is solved."""

    temperature: float
    """Of the first drafts; 0 is greedy, and then every run gives the same answer."""
    votes: int
    """First drafts; the answer that most of the sound ones give is kept."""
    redrafts: int
    """Drafts after first ones that all fail the check."""
    max_tokens: int
    top_k: int


async def solve(prompt: Prompt, llm: Llm, tools: Sequence[Tool], is_sound: Callable[[str], bool], settings: TeacherSettings) -> Completion:
    """The pipeline's answer to one prompt, with the model's top-k over its tokens and the usage of all its calls."""
    seed = None if settings.temperature else 0
    first = Sampling(temperature=settings.temperature, max_tokens=settings.max_tokens)
    with pipeline_step("draft"):
        drafts = await llm.complete(prompt.messages, tools=tools, n=settings.votes, sampling=first)
    usages = [draft.usage for draft in drafts]
    sound = [draft.text for draft in drafts if is_sound(draft.text)]
    if not sound and settings.redrafts:
        again = Sampling(temperature=max(settings.temperature, _REDRAFT_TEMPERATURE), max_tokens=settings.max_tokens, seed=seed)
        with pipeline_step("redraft"):
            redrafts = await llm.complete(prompt.messages, tools=tools, n=settings.redrafts, sampling=again)
        usages += [draft.usage for draft in redrafts]
        sound = [draft.text for draft in redrafts if is_sound(draft.text)]
    text = most_common(sound) if sound else drafts[0].text
    with pipeline_step("score"):
        answer = await llm.score(prompt.messages, text, tools=tools, logprobs=settings.top_k)
    return answer.model_copy(update={"text": text, "usage": sum(usages, answer.usage)})
