"""What a request of vLLM's used, as vLLM's own counters have it."""

from __future__ import annotations

from typing import Any

from supertiny.records import Usage


def usage_of(answer: Any) -> Usage:
    """What an answered request used: the token that a scoring draws and drops is counted too."""
    return Usage(
        prompt_tokens=len(answer.prompt_token_ids),
        cached_tokens=answer.num_cached_tokens or 0,
        completion_tokens=len(answer.outputs[0].token_ids),
    )


def spent_so_far(processor: Any, request_id: str) -> Usage:
    """What a request in the engine has used, by vLLM's own state of it: a prompt counts once it is read to its end."""
    (name,) = processor.external_req_ids[request_id]
    state = processor.request_states[name]
    if state.is_prefilling:
        return Usage()
    return Usage(
        prompt_tokens=state.prompt_len, cached_tokens=state.num_cached_tokens, completion_tokens=state.detokenizer.num_output_tokens()
    )
