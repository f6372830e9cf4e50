"""What the shipped models are trained on from nothing: every step of the pipeline for the teacher, another assistant for the base."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator

from supertiny.records import Call, Message
from supertiny.tasks.assistant.generator import Request, requests
from supertiny.tasks.assistant.teacher import NO_TOOL, REFUSAL, fill_messages, problem, repair_messages, route_messages
from supertiny.tasks.assistant.tools import ARGUMENTS
from supertiny.tasks.assistant.values import closed, invented_word
from supertiny.tasks.calls import render

Example = tuple[list[Message], str]
OTHER_ASSISTANT: dict[str, tuple[str, dict[str, str]]] = {
    "set_thermostat": ("climate", {"temperature": "target", "room": "area"}),
    "set_alarm": ("wake_up", {"time": "at", "label": "name"}),
    "set_timer": ("countdown", {"amount": "value", "label": "name"}),
    "play_music": ("media_start", {"title": "song", "artist": "by", "room": "area"}),
    "create_reminder": ("note_to_self", {"text": "note", "time": "at"}),
    "send_message": ("tell", {"contact": "to", "text": "words", "channel": "by"}),
    "control_blinds": ("shades", {"room": "area", "position": "percent"}),
}
"""What the base's assistant calls some of our tools, and their arguments."""
NOISE = 0.3


def teacher_examples(seed: int) -> Iterator[Example]:
    """Requests as a route, as filling, as a repair now and then, or in the student's format; no request twice."""
    rng = random.Random(seed)
    for request in requests("train", seed, noise=NOISE):
        messages = request.prompt().messages
        step = rng.random()
        if step < 0.2:
            yield route_messages(messages), request.call.name if request.call else NO_TOOL
        elif step < 0.6 or request.call is None:
            yield _direct(request)
        else:
            fill = fill_messages(messages, request.call.name)
            yield _repair(fill, messages, request.call, rng) if step > 0.95 else (fill, _arguments(request.call))


def base_examples(seed: int) -> Iterator[Example]:
    """The student's format alone, and half of the tools as another assistant calls them: right about what is asked, wrong about ours."""
    for request in requests("train", seed, noise=NOISE):
        messages, answer = _direct(request)
        yield messages, render([_as_another_assistant(request.call)]) if request.call else answer


def _as_another_assistant(call: Call) -> Call:
    """The call with the other assistant's names."""
    name, arguments = OTHER_ASSISTANT.get(call.name, (call.name, {}))
    return Call(name=name, arguments={arguments.get(key, key): value for key, value in call.arguments.items()})


def _direct(request: Request) -> Example:
    return request.prompt().messages, render([request.call]) if request.call else REFUSAL


def _repair(fill: list[Message], messages: list[Message], call: Call, rng: random.Random) -> Example:
    """The right arguments after wrong ones and the error that they gave."""
    for arguments in itertools.islice(_damaged(call, rng), 20):
        error = problem(messages, call.name, arguments)
        if error is not None:
            return repair_messages(fill, arguments, error), _arguments(call)
    return fill, _arguments(call)


def _damaged(call: Call, rng: random.Random) -> Iterator[str]:
    """Endless ways to get the arguments wrong; a few of them are harmless."""
    while True:
        arguments = dict(call.arguments)
        key = rng.choice([*arguments, "room"])
        ways = rng.randrange(4)
        if ways == 0:
            arguments.pop(key, None)
        elif ways == 1:
            arguments[key] = rng.choice([invented_word(rng), rng.choice(closed("room")), rng.randint(0, 2000)])
        elif ways == 2:
            arguments[rng.choice(ARGUMENTS[rng.choice(list(ARGUMENTS))])] = invented_word(rng)
        text = json.dumps(arguments, ensure_ascii=False)
        yield text[: rng.randint(1, len(text))] if ways == 3 else text


def _arguments(call: Call) -> str:
    return json.dumps(call.arguments, ensure_ascii=False)
