"""The teacher pipeline: route to a tool, fill in its arguments, check them by executing, repair once, answer, compare.

Each step is one call of the same model, which a short system message tells the step:

    route              -> `set_light`, or `none`
    fill set_light     -> `{"room": "kitchen", "power": "on"}`
    ... and the error  -> the arguments again, repaired
    (no system message)-> the answer in the student's format: a second opinion, taken where the filled call fails its checks
"""

from __future__ import annotations

import json

from supertiny.errors import MalformedCall, ToolFailure
from supertiny.llm.base import Llm, Sampling, pipeline_step
from supertiny.records import Call, Completion, Message, Prompt, Usage
from supertiny.tasks.assistant.home import Home
from supertiny.tasks.assistant.tools import ARGUMENTS, TOOLS, WORD_FOR_WORD
from supertiny.tasks.calls import check_schema, meaning, parse, render

REFUSAL = "I can't do that."
NO_TOOL = "none"
_ROUTE_TOKENS = 12
_FILL_TOKENS = 96
_ANSWER_TOKENS = 128


async def solve(prompt: Prompt, llm: Llm, temperature: float, top_k: int) -> Completion:
    """The pipeline's answer to one prompt in the student's format, with the model's top-k over its tokens and the usage of all calls.

    Args:
        temperature: of the arguments and the answer; the route is greedy.
        top_k: how many tokens a position keeps.
    """
    filled, usage = await _filled(prompt, llm, temperature)
    sampling = Sampling(temperature=temperature, max_tokens=_ANSWER_TOKENS)
    with pipeline_step("answer"):
        answer = (await llm.complete(prompt.messages, tools=TOOLS, sampling=sampling, logprobs=top_k))[0]
    if meaning(answer.text) == meaning(filled) or (_is_sound(prompt.messages, answer.text) and not _is_sound(prompt.messages, filled)):
        return answer.model_copy(update={"usage": usage + answer.usage})
    with pipeline_step("score"):
        scored = await llm.score(prompt.messages, filled, tools=TOOLS, logprobs=top_k)
    return scored.model_copy(update={"text": filled, "usage": usage + answer.usage + scored.usage})


async def _filled(prompt: Prompt, llm: Llm, temperature: float) -> tuple[str, Usage]:
    """The answer by routing and filling."""
    with pipeline_step("route"):
        routed = (await llm.complete(route_messages(prompt.messages), sampling=Sampling(max_tokens=_ROUTE_TOKENS)))[0]
    tool = routed.text.strip()
    if tool not in ARGUMENTS:
        return REFUSAL, routed.usage
    call, usage = await _fill(prompt, tool, llm, Sampling(temperature=temperature, max_tokens=_FILL_TOKENS))
    return render([call]) if call else REFUSAL, routed.usage + usage


async def _fill(prompt: Prompt, tool: str, llm: Llm, sampling: Sampling) -> tuple[Call | None, Usage]:
    """The tool's call, repaired once where it failed; None where the model never wrote arguments at all."""
    messages = fill_messages(prompt.messages, tool)
    with pipeline_step("fill"):
        first = (await llm.complete(messages, sampling=sampling))[0]
    error = problem(prompt.messages, tool, first.text)
    if error is None:
        return _read(tool, first.text), first.usage
    with pipeline_step("repair"):
        again = (await llm.complete(repair_messages(messages, first.text, error), sampling=Sampling(max_tokens=_FILL_TOKENS)))[0]
    return _read(tool, again.text) or _read(tool, first.text), first.usage + again.usage


def route_messages(messages: list[Message]) -> list[Message]:
    """The conversation as the routing step sees it."""
    return [{"role": "system", "content": "route"}, *messages]


def fill_messages(messages: list[Message], tool: str) -> list[Message]:
    """The conversation as the filling step sees it."""
    return [{"role": "system", "content": f"fill {tool}"}, *messages]


def repair_messages(messages: list[Message], arguments: str, error: str) -> list[Message]:
    """The filling step's conversation after arguments that failed."""
    return [*messages, {"role": "assistant", "content": arguments}, {"role": "tool", "content": error}]


def problem(messages: list[Message], tool: str, arguments: str) -> str | None:
    """What is wrong with arguments as the model wrote them, found by schema, by executing them in a scratch home, and in the request."""
    call = _read(tool, arguments)
    return "not a JSON object" if call is None else _fault(messages, call)


def _fault(messages: list[Message], call: Call) -> str | None:
    try:
        check_schema([call], TOOLS)
        Home().execute(call)
    except (MalformedCall, ToolFailure) as error:
        return str(error)
    request = str(messages[-1].get("content", "")).casefold()
    foreign = [value for key, value in call.arguments.items() if key in WORD_FOR_WORD and value.strip().casefold() not in request]
    return f"not in the request: {foreign[0]}" if foreign else None


def _is_sound(messages: list[Message], text: str) -> bool:
    try:
        return all(_fault(messages, call) is None for call in parse(text))
    except MalformedCall:
        return False


def _read(tool: str, arguments: str) -> Call | None:
    try:
        values = json.loads(arguments)
    except ValueError:
        return None
    return Call(name=tool, arguments=values) if isinstance(values, dict) else None
