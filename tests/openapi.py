"""What schemathesis makes of the router's OpenAPI document, sent to scripted arms and to real engines alike."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import CheckFunction, not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

CHECKS: list[CheckFunction] = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
"""No 5xx; a status, a content type and a body that the document names."""


def send_all(schema: Any, examples: int) -> Counter[tuple[str, int]]:
    """How often each path answered with which status, to requests as the document allows them and as it does not.

    Args:
        schema: a loaded schemathesis schema.
        examples: requests an operation of either kind; no seed changes them.
    """
    seen: Counter[tuple[str, int]] = Counter()
    for operation, mode in itertools.product((each.ok() for each in schema.get_all_operations()), GenerationMode):
        if operation.method == "get" and mode == GenerationMode.NEGATIVE:
            continue  # nothing of it could be wrong

        @settings(max_examples=examples, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(operation.as_strategy(mode))
        def send(case: Case) -> None:
            seen[case.path, case.call_and_validate(checks=CHECKS, timeout=60).status_code] += 1

        send()
    return seen
