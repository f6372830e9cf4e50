"""What passes between the parts: prompts, completions, verdicts. Plain data, light to import."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Message = dict[str, Any]
"""One OpenAI-style chat message: `role`, `content`, and for tools `tool_calls` or `tool_call_id`."""
Tool = dict[str, Any]
"""One OpenAI-style tool: `{"type": "function", "function": {name, description, parameters}}`."""


class Record(BaseModel):
    """Immutable plain data; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Call(Record):
    """One function call."""

    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class Prompt(Record):
    """One conversation to answer."""

    id: str
    """Unique in its task; the same text keeps the same id."""
    messages: list[Message]
    slice: str = "in_scope"
    """Which part of the task it belongs to, for metrics by slice: `in_scope`, `out_of_scope`, …"""
    reference: list[Call] | None = None
    """The right calls: `[]` where the right answer is no call, None where nobody knows."""


class TopK(Record):
    """The k likeliest tokens at each of T positions of a completion, under the teacher, at temperature 1."""

    ids: list[list[int]]
    """(T, K) token ids, likeliest first."""
    logprobs: list[list[float]]
    """(T, K) natural-log probabilities of `ids`."""


class Usage(Record):
    """What one completion cost, summed over every model call made for it."""

    calls: int = 1
    """Model calls."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Those of the prompt tokens that a prefix cache answered."""
    completion_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            calls=self.calls + other.calls,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
        )


class StepUsage(Record):
    """What the model calls of one pipeline step took."""

    usage: Usage = Usage(calls=0)
    engine_seconds: float = 0.0
    """Their share of the time in which our engine was busy."""
    endpoint_usd: float = 0.0
    """Dollars for tokens, where an endpoint with a price answered."""

    def __add__(self, other: StepUsage) -> StepUsage:
        return StepUsage(
            usage=self.usage + other.usage,
            engine_seconds=self.engine_seconds + other.engine_seconds,
            endpoint_usd=self.endpoint_usd + other.endpoint_usd,
        )


class Completion(Record):
    """What a model, or a whole teacher pipeline, answered to one prompt."""

    text: str
    """The answer in the student's format: calls as `supertiny.tasks.calls.render` writes them, or plain text. No end token."""
    token_ids: list[int] = Field(default_factory=list)
    """The completion's T tokens in the student's prompt format, the end-of-turn token included; empty where the engine gives none."""
    top_k: TopK | None = None
    """The teacher's distribution over each of `token_ids`; None where it was not asked for or cannot be had."""
    token_logprobs: list[float] | None = None
    """Natural-log probabilities of `token_ids` themselves under the model that scored them; no table keeps them."""
    finish_reason: Literal["stop", "length"] = "stop"
    usage: Usage = Usage()


class Judgement(Record):
    """What a judging model said of one completion, word for word."""

    prompt: list[Message]
    """The conversation that it was asked with."""
    answers: list[str]
    """Its raw answers, one a vote."""
    score: float | None
    """Mean of the scores that could be read; None where too few could."""
    usage: Usage


class Verdict(Record):
    """What a task's verifier says of one completion, and then a judge where one is asked."""

    accepted: bool
    score: float = Field(ge=-1, le=1)
    """Graded reward: 1 right, -1 not even well-formed."""
    reason: str = ""
    """Why it was not accepted, one of a few snake_case words so that they can be counted; empty when accepted."""
    evidence: str = ""
    """What was seen, for a person: the expected and the given call, the tool's message."""
    judgement: Judgement | None = None
    """The judge's; None where none was asked."""


class Rollout(Record):
    """One judged completion of one prompt: a row of a rollout table."""

    rollout_id: str
    """`prompt_id/index`, known before the engine is asked."""
    index: int
    """Which of its prompt's `group_size` completions it is."""
    prompt: Prompt
    tools: list[Tool]
    completion: Completion
    verdict: Verdict
    seconds: float
    """From the pipeline's first call to its answer, other prompts being in flight."""
    engine_seconds: float = 0.0
    """Its share of the time in which the engine was busy: those of all rollouts add up to it."""
    student_logprob: float | None = None
    """Mean log-probability of the completion's tokens under the student, nats a token; None where it was not asked, or could not say."""
    steps: dict[str, StepUsage] = Field(default_factory=dict)
    """What each pipeline step took, by name; the filters that ask a model stand beside them as `filters.judge`, …"""


class Parity(Record):
    """Whether vLLM serves the model that Hugging Face loads: what the proof found, as it stands in the artifact's manifest."""

    verdict: Literal["pass", "fail"]
    problems: list[str]
    """Why it failed, one a line."""
    kl_nats: float
    """Mean KL(Hugging Face ‖ vLLM) over all positions, nats a token; NaN where a log-probability was none, which JSON has as null."""
    greedy_agreement: float
    """Share of positions where both find the same token likeliest."""
    positions: int
    tokenizer_sha256: str
    template_sha256: str
    not_compared: str = ""
    """Why its tokenizer and template were not compared with those of the model that it was made from; empty where they were."""

    @field_validator("kl_nats", mode="before")
    @classmethod
    def _no_number(cls, value: Any) -> Any:
        return math.nan if value is None else value


def is_utf8(text: str) -> bool:
    """Whether a text can be stored: a lone surrogate, which JSON may hold, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
