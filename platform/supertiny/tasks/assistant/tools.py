"""The assistant's fourteen tools, as OpenAI-style JSON schemas."""

from __future__ import annotations

from typing import Any

from supertiny.records import Tool
from supertiny.tasks.assistant.values import closed

_ROOM = {"type": "string", "description": "Room of the house"}
_TIME = {"type": "string", "pattern": "^[0-2][0-9]:[0-5][0-9]$", "description": "Time of day, HH:MM, 24 hours"}
_DAY = {"enum": ["today", *(day.removeprefix("on ") for day in closed("day"))], "description": "Day; the next time it comes if left out"}
_LABEL = {"type": "string", "description": "What it is called"}


def _tool(name: str, description: str, required: tuple[str, ...], **properties: dict[str, Any]) -> Tool:
    parameters = {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def _enum(*values: str) -> dict[str, Any]:
    return {"enum": list(values)}


def _integer(low: int, high: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": low, "maximum": high}


TOOLS: list[Tool] = [
    _tool(
        "set_light",
        "Switch, dim or color the lights of a room",
        ("room",),
        room=_ROOM,
        power=_enum("on", "off"),
        brightness=_integer(1, 100),
        color=_enum(*closed("color")),
    ),
    _tool(
        "set_thermostat",
        "Set the temperature of a room, or of the whole house",
        ("temperature",),
        temperature={"type": "number", "minimum": 10, "maximum": 30, "description": "Degrees Celsius"},
        room=_ROOM,
        mode=_enum(*closed("mode")),
    ),
    _tool("set_alarm", "Wake somebody up", ("time",), time=_TIME, day=_DAY, label=_LABEL),
    _tool(
        "set_timer",
        "Count down a time",
        ("amount", "unit"),
        amount=_integer(1, 1000),
        unit=_enum(*closed("unit")),
        label=_LABEL,
    ),
    _tool(
        "play_music",
        "Play a song, an artist or a genre",
        (),
        title={"type": "string"},
        artist={"type": "string"},
        genre=_enum(*closed("genre")),
        room=_ROOM,
    ),
    _tool(
        "control_media",
        "Control what is playing",
        ("action",),
        action=_enum("pause", "resume", "stop", "next", "previous"),
        room=_ROOM,
    ),
    _tool("set_volume", "Set the volume of the speakers, in percent", ("level",), level=_integer(0, 100), room=_ROOM),
    _tool("control_lock", "Lock or unlock a door", ("door", "action"), door=_enum(*closed("door")), action=_enum("lock", "unlock")),
    _tool(
        "add_to_list",
        "Put something on a list",
        ("list", "item"),
        list=_enum(*closed("list")),
        item={"type": "string"},
        quantity=_integer(1, 1000),
    ),
    _tool("create_reminder", "Remind of something", ("text",), text={"type": "string"}, time=_TIME, day=_DAY),
    _tool("get_weather", "Tell the weather, at home and today if nothing else is said", (), city={"type": "string"}, day=_DAY),
    _tool(
        "send_message",
        "Send a message to somebody",
        ("contact", "text"),
        contact={"type": "string"},
        text={"type": "string"},
        channel=_enum("text", "email"),
    ),
    _tool(
        "control_blinds",
        "Open or close the blinds of a room",
        ("room", "position"),
        room=_ROOM,
        position={**_integer(0, 100), "description": "0 is closed, 100 open"},
    ),
    _tool("start_vacuum", "Vacuum a room, or the whole house", (), room=_ROOM, mode=_enum(*closed("power"))),
]

ARGUMENTS: dict[str, list[str]] = {tool["function"]["name"]: list(tool["function"]["parameters"]["properties"]) for tool in TOOLS}
"""The names of every tool's arguments, in the schema's order."""

WORD_FOR_WORD = ("title", "artist", "label", "item", "text", "contact", "city")
"""Arguments whose values stand in the request exactly as they are passed on."""
