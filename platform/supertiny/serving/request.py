"""The bodies of `/v1/chat/completions` and `/v1/completions`: the fields that are allowed, their caps, and why one was refused."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import from_json

from supertiny.llm.base import Sampling
from supertiny.records import Message, Record, Tool
from supertiny.serving.config import LimitsConfig


class Part(Record):
    """Part of a request: unknown fields are refused, and null means absent."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, values: Any) -> Any:
        return {key: value for key, value in values.items() if value is not None} if isinstance(values, dict) else values


class TextPart(Part):
    """A text part of a message's content; images and audio are refused."""

    type: Literal["text"]
    text: str


class FunctionCall(Part):
    """The function of a tool call, its arguments as JSON text."""

    name: str
    arguments: str


class ToolCall(Part):
    """A call that an earlier answer made."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(Part):
    """One message of the conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | list[TextPart] = ""
    name: str | None = None
    tool_calls: list[ToolCall] = Field(default_factory=list, max_length=16)
    tool_call_id: str | None = None

    def plain(self) -> Message:
        """The message as chat templates take it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        tool_calls = [call.model_dump() for call in self.tool_calls] or None
        given = {"name": self.name, "tool_calls": tool_calls, "tool_call_id": self.tool_call_id}
        return {"role": self.role, "content": content, **{key: value for key, value in given.items() if value is not None}}


class StreamOptions(Part):
    """Options of a streamed answer."""

    include_usage: bool = False


class GenerationRequest(Part, ABC):
    """What both endpoints take. Sampling fields steer the student; the teacher pipeline samples as its task says."""

    model: str
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**62)
    stop: list[str] = Field(default_factory=list, max_length=4)
    n: Literal[1] = 1
    user: str | None = Field(None, max_length=256)

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop_is_a_list_of_one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _stop_is_short(cls, value: list[str]) -> list[str]:
        if any(not 0 < len(text) <= 64 for text in value):
            raise ValueError("each stop has 1 to 64 characters")
        return value

    @property
    def asked_tokens(self) -> int | None:
        """Most tokens of the completion that the client wants; None where it does not say."""
        return self.max_tokens

    @abstractmethod
    def plain_messages(self) -> list[Message]:
        """The conversation as chat templates take it."""

    def check(self, limits: LimitsConfig, tools: Sequence[Tool]) -> None:
        """Raise ValueError where something is over its cap."""
        if (self.asked_tokens or 0) > limits.completion_tokens:
            raise ValueError(f"max_tokens: {self.asked_tokens}, at most {limits.completion_tokens}")

    def sampling(self, limits: LimitsConfig) -> Sampling:
        """How the student draws its completion."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.asked_tokens or limits.completion_tokens,
            fit_context=self.asked_tokens is None,
            stop=tuple(self.stop),
            seed=self.seed,
        )


class ChatRequest(GenerationRequest):
    """What a client may send to `/v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    tools: list[Tool] = Field(default_factory=list, max_length=128)
    tool_choice: Literal["auto"] = "auto"
    parallel_tool_calls: Literal[True] = True

    @property
    def asked_tokens(self) -> int | None:
        """The newer field goes before the older one."""
        return self.max_completion_tokens or self.max_tokens

    def plain_messages(self) -> list[Message]:
        """The conversation as chat templates take it."""
        return [message.plain() for message in self.messages]

    def check(self, limits: LimitsConfig, tools: Sequence[Tool]) -> None:
        """Raise ValueError where something is over its cap, or a tool is not the task's."""
        super().check(limits, tools)
        if len(self.messages) > limits.messages:
            raise ValueError(f"messages: {len(self.messages)}, at most {limits.messages}")
        if self.tools and len(json.dumps(self.tools)) > limits.schema_bytes:
            raise ValueError(f"tools: over {limits.schema_bytes} bytes")
        _check_tools(self.tools, tools)


class TextRequest(GenerationRequest):
    """What a client may send to `/v1/completions`: one prompt, which the models see as a user's message."""

    prompt: str = Field(min_length=1)

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_prompt_may_be_a_list_of_one(cls, value: Any) -> Any:
        if isinstance(value, list) and len(value) == 1:
            return value[0]
        if isinstance(value, list):
            raise ValueError(f"{len(value)} prompts, expected 1")
        return value

    def plain_messages(self) -> list[Message]:
        """The prompt as a conversation of one message."""
        return [{"role": "user", "content": self.prompt}]


Kind = TypeVar("Kind", bound=GenerationRequest)


def parse_request(kind: type[Kind], body: bytes, limits: LimitsConfig, tools: Sequence[Tool]) -> Kind:
    """A checked request.

    Args:
        tools: the task's; a request may name only these, and the models always know all of them.

    Raises:
        ValueError: not JSON, an unknown field, or a value that is wrong or over a cap; the message names the field.
    """
    try:
        values = from_json(body, allow_inf_nan=False)  # unlike json.loads it refuses lone surrogates and NaN
    except (ValueError, RecursionError):
        raise ValueError("the body is not JSON") from None
    try:
        request = kind.model_validate(values)
    except ValidationError as error:
        raise ValueError("; ".join(_explain(detail) for detail in error.errors()[:4])) from None
    request.check(limits, tools)
    return request


def _explain(detail: Any) -> str:
    where = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"{where}: no such field here"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def _check_tools(given: Sequence[Tool], known: Sequence[Tool]) -> None:
    names = {tool["function"]["name"] for tool in known}
    for tool in given:
        function = tool.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        if name not in names:
            raise ValueError(f"tools: {name!r} is not a tool of this task; it has {', '.join(sorted(names))}")
