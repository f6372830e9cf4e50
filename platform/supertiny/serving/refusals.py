"""What a client is told where there is no answer: OpenAI's error shape, and nothing from inside."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse

from supertiny.errors import ArmBusy, PromptRefused
from supertiny.serving.keys import Refusal
from supertiny.serving.stream import JsonObject

_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
CLIENT_LEFT = 499
"""What is counted where nobody waits for an answer any more (nginx's number); nobody is sent it."""
log = logging.getLogger(__name__)


def error_body(status: int, message: str) -> JsonObject:
    """An error in OpenAI's shape."""
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


def of_arm(name: str, error: Exception, headers: Mapping[str, str]) -> HTTPException:
    """The refusal for an arm that failed: why its own prompt was refused is all that a client learns of it."""
    if isinstance(error, HTTPException):
        return error
    if isinstance(error, PromptRefused):
        return HTTPException(400, str(error), dict(headers))
    if isinstance(error, ArmBusy):
        return HTTPException(503, f"the {name} is overloaded; try again", {"retry-after": "1", **headers})
    if isinstance(error, TimeoutError):
        return HTTPException(504, f"the {name} did not answer in time", dict(headers))
    log.error("%s failed: %s", name, type(error).__name__, exc_info=error)
    return HTTPException(500, f"the {name} failed", dict(headers))


def of_start(name: str, headers: Mapping[str, str]) -> HTTPException:
    """The refusal where the deadline passed before an arm had a replica."""
    return HTTPException(503, f"the {name} is starting; try again", {"retry-after": "10", **headers})


def of_body(error: Exception) -> HTTPException:
    """The refusal for a request that is not what it should be, or did not come whole."""
    if isinstance(error, HTTPException):
        return error
    if isinstance(error, TimeoutError):
        return HTTPException(408, "the body did not come in time")
    return HTTPException(CLIENT_LEFT, "the client left before its request was whole")


def of_guard(refusal: Refusal) -> HTTPException:
    """The refusal for a caller who is not let in."""
    headers = {"www-authenticate": "Bearer"} if refusal.status == 401 else {}
    if refusal.retry_after is not None:
        headers["retry-after"] = str(refusal.retry_after)
    return HTTPException(refusal.status, str(refusal), headers)


async def error_response(_: Request, error: Any) -> JSONResponse:
    """The handler of every HTTPException."""
    return JSONResponse(error_body(error.status_code, error.detail), status_code=error.status_code, headers=error.headers)


async def failure_response(_: Request, error: Exception) -> JSONResponse:
    """The handler of what nobody expected."""
    log.error("the router failed: %s", type(error).__name__, exc_info=error)
    return JSONResponse(error_body(500, "the router failed"), status_code=500)
