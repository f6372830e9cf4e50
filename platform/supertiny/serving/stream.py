"""An answer's text, as it comes, in OpenAI's shapes: streamed events or one body, by the same code.

Text goes out as it is drawn; a call is held back until its block is closed, and then goes out whole. A malformed call stays text, as
the model wrote it. Space around calls is dropped.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any, Literal

from supertiny.errors import MalformedCall
from supertiny.records import Call, Completion, Record, Usage
from supertiny.tasks import calls

JsonObject = dict[str, Any]
OPEN, CLOSE = "<tool_call>", "</tool_call>"


class Piece(Record):
    """The next bit of an answer; the last one says why it ended and what it cost."""

    text: str = ""
    finish_reason: Literal["stop", "length"] | None = None
    usage: Usage | None = None


def whole_piece(completion: Completion) -> Piece:
    """A whole answer as the only piece of a stream."""
    return Piece(text=completion.text, finish_reason=completion.finish_reason, usage=completion.usage)


class Refused(Record):
    """Why the engine cannot take a prompt. Between processes it is data: an error would drag its traceback along."""

    reason: str


class DeltaWriter:
    """Turns pieces of text into message deltas: content, or whole tool calls. Where the text is cut makes no difference."""

    def __init__(self) -> None:
        self.num_calls = 0
        self._held = ""
        self._after_call = False

    def feed(self, text: str) -> list[JsonObject]:
        """The deltas that a piece of text completes."""
        self._held += text
        deltas = []
        while (start := self._held.find(OPEN)) >= 0 and (end := self._held.find(CLOSE, start)) >= 0:
            end += len(CLOSE)
            before, block, self._held = self._held[:start], self._held[start:end], self._held[end:]
            deltas += [*self._content(before.rstrip()), self._call(block)]
        safe_end = start if start >= 0 else len(self._held) - _opening_length(self._held)
        safe = self._held[:safe_end].rstrip()
        self._held = self._held[len(safe) :]
        return deltas + self._content(safe)

    def finish(self) -> list[JsonObject]:
        """What is still held back, as content."""
        rest, self._held = self._held, ""
        return self._content(rest)

    def _content(self, text: str) -> list[JsonObject]:
        if self._after_call:
            text = text.lstrip()
        if not text:
            return []
        self._after_call = False
        return [{"content": text}]

    def _call(self, block: str) -> JsonObject:
        try:
            (call,) = calls.parse(block)
        except (MalformedCall, ValueError):
            self._after_call = False
            return {"content": block}
        self.num_calls += 1
        self._after_call = True
        return {"tool_calls": [{"index": self.num_calls - 1, **tool_call(call)}]}


def _opening_length(text: str) -> int:
    """Length of the longest end of a text that may become an opening tag."""
    return next((size for size in range(min(len(OPEN) - 1, len(text)), 0, -1) if OPEN.startswith(text[-size:])), 0)


def completion_body(arm: str, completion: Completion) -> JsonObject:
    """The `chat.completion` object of a finished answer."""
    writer = DeltaWriter()
    deltas = writer.feed(completion.text) + writer.finish()
    content = "".join(delta.get("content", "") for delta in deltas)
    message: JsonObject = {"role": "assistant", "content": content if content or not writer.num_calls else None}
    if writer.num_calls:
        message["tool_calls"] = [{key: call[key] for key in ("id", "type", "function")} for d in deltas for call in d.get("tool_calls", ())]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish_reason(completion.finish_reason, writer)}
    return {**head_of("chat.completion", "chatcmpl", arm), "choices": [choice], "usage": usage_body(completion.usage)}


async def events(arm: str, pieces: AsyncIterator[Piece], include_usage: bool) -> AsyncIterator[str]:
    """The server-sent events of an answer, `[DONE]` included."""
    head = head_of("chat.completion.chunk", "chatcmpl", arm) | ({"usage": None} if include_usage else {})
    writer, reason, usage = DeltaWriter(), "stop", Usage()
    yield event(head | {"choices": [_choice({"role": "assistant", "content": ""})]})
    async for piece in pieces:
        for delta in writer.feed(piece.text):
            yield event(head | {"choices": [_choice(delta)]})
        reason = piece.finish_reason or reason
        usage = piece.usage or usage
    for delta in writer.finish():
        yield event(head | {"choices": [_choice(delta)]})
    yield event(head | {"choices": [_choice({}, _finish_reason(reason, writer))]})
    if include_usage:
        yield event(head | {"choices": [], "usage": usage_body(usage)})
    yield "data: [DONE]\n\n"


def tool_call(call: Call) -> JsonObject:
    """A call in OpenAI's shape."""
    function = {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def answer_text(message: JsonObject) -> str:
    """The student-format text of an answer message, for a verifier."""
    functions = [item["function"] for item in message.get("tool_calls") or []]
    given = [Call(name=function["name"], arguments=json.loads(function["arguments"])) for function in functions]
    return "\n".join(part for part in (message.get("content"), calls.render(given)) if part)


def usage_body(usage: Usage) -> JsonObject:
    """Token counts, summed over all model calls behind the answer."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _finish_reason(reason: str, writer: DeltaWriter) -> str:
    return "tool_calls" if writer.num_calls and reason == "stop" else reason


def _choice(delta: JsonObject, reason: str | None = None) -> JsonObject:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}


def event(body: JsonObject) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"


def head_of(kind: str, prefix: str, arm: str) -> JsonObject:
    """What every object of an answer starts with."""
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": arm}
