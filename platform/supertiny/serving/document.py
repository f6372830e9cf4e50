"""The OpenAPI document of the router: its bodies, its answers, its refusals, which the handlers read and write by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI

from supertiny.records import Record
from supertiny.serving.request import ChatRequest, GenerationRequest, TextRequest

_SCHEMAS = "#/components/schemas/{model}"
_ANSWER = {"type": "object", "required": ["id", "object", "created", "model", "choices", "usage"]}
_EVENT = {"type": "object", "required": ["data"], "description": "Each event is a piece of the answer as JSON; the last one is [DONE]."}
_REFUSALS = (400, 401, 403, 404, 408, 413, 429, 500, 503, 504)


class ErrorDetail(Record):
    """Why there is no answer."""

    message: str
    type: str
    param: str | None
    code: int


class ErrorBody(Record):
    """An error in OpenAI's shape."""

    error: ErrorDetail


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` for errors in OpenAI's shape."""
    return {status: {"model": ErrorBody, "description": HTTPStatus(status).phrase} for status in statuses}


def generation(kind: type[GenerationRequest]) -> dict[str, Any]:
    """FastAPI's words for a route that takes this body and gives an answer, whole or as a stream of events."""
    body = {"required": True, "content": {"application/json": {"schema": {"$ref": _SCHEMAS.format(model=kind.__name__)}}}}
    answer = {"application/json": {"schema": _ANSWER}, "text/event-stream": {"schema": _EVENT}}
    answers = {200: {"description": "An answer, or a stream of its pieces", "content": answer}}
    return {"openapi_extra": {"requestBody": body}, "responses": {**answers, **refusals(*_REFUSALS)}}


def describe(app: FastAPI, models: Sequence[str]) -> None:
    """Add the schemas of the bodies to the document, with the models that there are."""
    document = app.openapi()
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for kind in (ChatRequest, TextRequest):
        schema = kind.model_json_schema(ref_template=_SCHEMAS)
        schema["properties"]["model"]["enum"] = list(models)
        schemas.update(schema.pop("$defs", {}))
        schemas[kind.__name__] = schema
