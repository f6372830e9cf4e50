"""A small simulated home: what a call does there, or why it cannot be done."""

from __future__ import annotations

from typing import Any

from supertiny.errors import ToolFailure
from supertiny.records import Call
from supertiny.tasks.assistant.tools import ARGUMENTS
from supertiny.tasks.assistant.values import closed

State = dict[str, Any]


class Home:
    """Devices, lists and people, in a fixed first state; every executed call changes `state`."""

    def __init__(self) -> None:
        rooms = closed("room")
        self.state: State = {
            "lights": {room: {"power": "off", "brightness": 100, "color": "white"} for room in rooms},
            "thermostats": {room: {"temperature": 20.0, "mode": "auto"} for room in rooms},
            "blinds": dict.fromkeys(rooms, 35),
            "volume": dict.fromkeys(rooms, 33),
            "music": {room: {} for room in rooms},
            "doors": {"front": "lock", "back": "unlock", "garage": "lock", "side": "unlock", "patio": "unlock"},
            "log": [],
        }

    def execute(self, call: Call) -> None:
        """Do what a call asks.

        Raises:
            ToolFailure: the home has no such tool, room or door, or the arguments make no sense together.
        """
        if call.name not in ARGUMENTS:
            raise ToolFailure(f"no such tool: {call.name}")
        try:
            getattr(self, f"_{call.name}")(**call.arguments)
        except TypeError as error:
            raise ToolFailure(f"{call.name}: {error}") from None

    def _rooms(self, room: str | None) -> list[str]:
        """The rooms meant: one, or all where none is named."""
        if room is None:
            return closed("room")
        if _same(room) not in closed("room"):
            raise ToolFailure(f"no such room: {room}")
        return [_same(room)]

    def _set_light(self, room: str, power: str | None = None, brightness: int | None = None, color: str | None = None) -> None:
        if power is None and brightness is None and color is None:
            raise ToolFailure("set_light: nothing to change")
        if power == "off" and (brightness or color):
            raise ToolFailure("set_light: a light that is off has no brightness or color")
        changes = {"power": power or "on", "brightness": brightness, "color": color}
        for name in self._rooms(room):
            self.state["lights"][name].update({key: value for key, value in changes.items() if value is not None})

    def _set_thermostat(self, temperature: float, room: str | None = None, mode: str | None = None) -> None:
        for name in self._rooms(room):
            self.state["thermostats"][name] = {"temperature": float(temperature), "mode": mode or "auto"}

    def _control_blinds(self, room: str, position: int) -> None:
        for name in self._rooms(room):
            self.state["blinds"][name] = position

    def _set_volume(self, level: int, room: str | None = None) -> None:
        for name in self._rooms(room):
            self.state["volume"][name] = level

    def _play_music(self, title: str = "", artist: str = "", genre: str = "", room: str | None = None) -> None:
        if not (title or artist or genre):
            raise ToolFailure("play_music: nothing to play")
        for name in self._rooms(room):
            self.state["music"][name] = {"title": _same(title), "artist": _same(artist), "genre": _same(genre)}

    def _control_media(self, action: str, room: str | None = None) -> None:
        self._note("media", action=action, rooms=self._rooms(room))

    def _control_lock(self, door: str, action: str) -> None:
        if door not in self.state["doors"]:
            raise ToolFailure(f"no such door: {door}")
        self.state["doors"][door] = action
        self._note("lock", door=door, action=action)

    def _start_vacuum(self, room: str | None = None, mode: str = "normal") -> None:
        self._note("vacuum", rooms=self._rooms(room), mode=mode)

    def _set_alarm(self, time: str, day: str | None = None, label: str = "") -> None:
        self._note("alarm", time=_clock(time), day=day, label=_same(label))

    def _set_timer(self, amount: int, unit: str, label: str = "") -> None:
        seconds = amount * {"seconds": 1, "minutes": 60, "hours": 3600}[unit]
        self._note("timer", seconds=seconds, label=_same(label))

    def _add_to_list(self, list: str, item: str, quantity: int = 1) -> None:
        self._note("list", list=list, item=_text("item", item), quantity=quantity)

    def _create_reminder(self, text: str, time: str | None = None, day: str | None = None) -> None:
        self._note("reminder", text=_text("text", text), time=_clock(time) if time else None, day=day)

    def _get_weather(self, city: str = "home", day: str = "today") -> None:
        self._note("weather", city=_text("city", city), day=day)

    def _send_message(self, contact: str, text: str, channel: str = "text") -> None:
        self._note("message", contact=_text("contact", contact), text=_text("text", text), channel=channel)

    def _note(self, kind: str, **what: Any) -> None:
        """Remember something done that leaves no device changed."""
        self.state["log"].append({"kind": kind, **what})


def _same(text: str) -> str:
    """Text as it is compared: without case and outer space."""
    return text.strip().casefold()


def _text(argument: str, text: str) -> str:
    if not text.strip():
        raise ToolFailure(f"{argument} is empty")
    return _same(text)


def _clock(time: str) -> str:
    hour, _, minute = time.partition(":")
    if not (hour.isdigit() and minute.isdigit() and int(hour) < 24 and int(minute) < 60):
        raise ToolFailure(f"no such time: {time}")
    return f"{int(hour):02}:{int(minute):02}"
