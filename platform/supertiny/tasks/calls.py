"""Function calls as text: write, parse, match, grade and count them.

The text is what Qwen's and Hermes' chat templates use, and what vLLM's `hermes` tool parser reads:

    <tool_call>
    {"name": "set_light", "arguments": {"room": "kitchen"}}
    </tool_call>
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pydantic_core import from_json

from supertiny.errors import MalformedCall
from supertiny.records import Call, Tool

_BLOCK = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_DEEPEST = 100
"""Lists and objects in one another in a call; what is read here is compared and written elsewhere, by functions that call themselves."""


def render(calls: Sequence[Call]) -> str:
    """Calls in the student's format, one block a call."""
    bodies = (json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False) for call in calls)
    return "\n".join(f"<tool_call>\n{body}\n</tool_call>" for body in bodies)


def parse(text: str) -> list[Call]:
    """The calls in a completion; plain text has none.

    Raises:
        MalformedCall: a block is not closed, not JSON, or not `{"name": …, "arguments": {…}}`.
    """
    blocks = _BLOCK.findall(text)
    if "<tool_call>" in _BLOCK.sub("", text) or "</tool_call>" in _BLOCK.sub("", text):
        raise MalformedCall(f"a <tool_call> block is not closed: {text[-80:]!r}")
    return [parse_body(block) for block in blocks]


def call_schema(tools: Sequence[Tool]) -> dict[str, Any]:
    """JSON schema of the body of one call of these tools, for `Sampling.json_schema`; `parse_body` reads what is drawn with it.

    Of one tool it is an object, which every endpoint takes; of several a choice (`anyOf`), which vLLM takes and OpenAI does not.
    """
    bodies = [_body_schema(tool["function"]) for tool in tools]
    return bodies[0] if len(bodies) == 1 else {"anyOf": bodies}


def parse_body(body: str) -> Call:
    """The call in what stands between `<tool_call>` and `</tool_call>`.

    Raises:
        MalformedCall: it is not JSON, or not `{"name": …, "arguments": {…}}`, or nested beyond reason.
    """
    try:
        values = from_json(body, allow_inf_nan=False)  # unlike json.loads it refuses lone surrogates, NaN and what is too deep
    except ValueError as error:
        raise MalformedCall(f"not JSON ({error}): {body.strip()[:80]!r}") from None
    if _is_deeper(values, _DEEPEST):
        raise MalformedCall(f"nested more than {_DEEPEST} levels deep: {body.strip()[:80]!r}")
    if not isinstance(values, dict) or set(values) != {"name", "arguments"}:
        raise MalformedCall(f"expected name and arguments: {body.strip()[:80]!r}")
    if not isinstance(values["name"], str) or not isinstance(values["arguments"], dict):
        raise MalformedCall(f"a name is text and arguments an object: {body.strip()[:80]!r}")
    return Call(name=values["name"], arguments=values["arguments"])


def matches(given: Sequence[Call], expected: Sequence[Call]) -> bool:
    """Whether two lists hold the same calls, in any order; strings are compared without case and outer space, and 7 is 7.0."""
    return sorted(_canonical(call) for call in given) == sorted(_canonical(call) for call in expected)


def grade(given: Sequence[Call], expected: Sequence[Call]) -> float:
    """Similarity of two lists of calls in [0, 1]: overlap of names times the mean similarity of the paired arguments.

    After STAR's graded reward (arXiv 2602.03022): 1 only for a match, and every right argument counts. Two empty lists give 1.
    """
    return name_overlap(given, expected) * argument_similarity(given, expected)


def name_overlap(given: Sequence[Call], expected: Sequence[Call]) -> float:
    """Calls of one name in both lists, over all (intersection over union of the two bags of names), in [0, 1]; 1 where both are empty."""
    if not given and not expected:
        return 1.0
    names, others = Counter(call.name for call in given), Counter(call.name for call in expected)
    return (names & others).total() / (names | others).total()


def argument_similarity(given: Sequence[Call], expected: Sequence[Call]) -> float:
    """Mean `argument_f1` of the calls of one name, each paired with the likest that is left; 0 without a pair, 1 where both are empty."""
    if not given and not expected:
        return 1.0
    unpaired = list(expected)
    similarities = []
    for call in given:
        candidates = [other for other in unpaired if other.name == call.name]
        if candidates:
            best = max(candidates, key=lambda other: argument_f1(call.arguments, other.arguments))
            unpaired.remove(best)
            similarities.append(argument_f1(call.arguments, best.arguments))
    return sum(similarities) / len(similarities) if similarities else 0.0


def argument_f1(given: dict[str, Any], expected: dict[str, Any]) -> float:
    """F1 of the (argument, value) pairs of two calls, in [0, 1]; 1 where both have none."""
    if not given and not expected:
        return 1.0
    shared = sum(1 for key, value in given.items() if key in expected and _text(value) == _text(expected[key]))
    return 2 * shared / (len(given) + len(expected))


def check_schema(calls: Sequence[Call], tools: Sequence[Tool]) -> None:
    """Check every call against its tool's JSON schema.

    Raises:
        MalformedCall: no such tool, or arguments that its schema refuses.
    """
    import jsonschema  # 0.1 s, and `calls` is imported by everything
    from jsonschema.validators import validator_for

    parameters = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    for call in calls:
        if call.name not in parameters:
            raise MalformedCall(f"no such tool: {call.name}")
        try:
            schema = parameters[call.name]
            validator_for(schema)(schema).validate(call.arguments)  # jsonschema.validate also checks the schema: 200 times slower
        except jsonschema.ValidationError as error:
            raise MalformedCall(f"{call.name}: {error.message}") from None


def most_common(texts: Sequence[str]) -> str:
    """The text whose calls most texts share, the first of them; `texts` is not empty."""
    counts = Counter(map(meaning, texts))
    return max(texts, key=lambda text: counts[meaning(text)])


def meaning(text: str) -> str:
    """The same for texts whose calls match; one for all texts without a call, and malformed ones stand for themselves."""
    try:
        return json.dumps(sorted(_canonical(call) for call in parse(text)))
    except MalformedCall:
        return text


def _body_schema(function: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": function["parameters"]},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _is_deeper(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(levels == 0 or _is_deeper(each, levels - 1) for each in inner)


def _canonical(call: Call) -> str:
    return _text([call.name, call.arguments])


def _text(value: Any) -> str:
    """A value as text that is equal exactly where two values count as the same; `true` is not 1."""
    return json.dumps(_plain(value), sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value.strip().casefold()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
