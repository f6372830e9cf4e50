"""An answer in the shapes of the older `/v1/completions`: its text as the model wrote it, calls included."""

from __future__ import annotations

from collections.abc import AsyncIterator

from supertiny.records import Completion, Usage
from supertiny.serving.stream import JsonObject, Piece, event, head_of, usage_body


def text_body(arm: str, completion: Completion) -> JsonObject:
    """The `text_completion` object of a finished answer."""
    choice = _choice(completion.text, completion.finish_reason)
    return {**head_of("text_completion", "cmpl", arm), "choices": [choice], "usage": usage_body(completion.usage)}


async def text_events(arm: str, pieces: AsyncIterator[Piece], include_usage: bool) -> AsyncIterator[str]:
    """The server-sent events of an answer, `[DONE]` included."""
    head = head_of("text_completion", "cmpl", arm) | ({"usage": None} if include_usage else {})
    usage = Usage()
    async for piece in pieces:
        usage = piece.usage or usage
        if piece.text or piece.finish_reason:
            yield event(head | {"choices": [_choice(piece.text, piece.finish_reason)]})
    if include_usage:
        yield event(head | {"choices": [], "usage": usage_body(usage)})
    yield "data: [DONE]\n\n"


def _choice(text: str, reason: str | None) -> JsonObject:
    return {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
