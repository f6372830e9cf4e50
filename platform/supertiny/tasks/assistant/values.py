"""Values of the assistant's slots: how they are said, and what they are in a call."""

from __future__ import annotations

import random
import tomllib
import zlib
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from supertiny.tasks.assistant.grammar import SLOT, expand

Split = Literal["train", "heldout"]
HELDOUT_ONE_IN = 4
_ONSETS = (
    *("b", "br", "c", "ch", "d", "dr", "f", "fl", "g", "gr", "h", "j", "k", "kl", "l", "m"),
    *("n", "p", "pl", "qu", "r", "s", "sh", "sk", "st", "t", "tr", "v", "w", "z"),
)
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "oo", "ia")
_CODAS = ("", "", "n", "r", "l", "s", "x", "m", "ck", "nd", "th", "rn")


@cache
def _pools() -> dict[str, dict[str, list[str]]]:
    return tomllib.loads(files("supertiny.tasks.assistant").joinpath("values.toml").read_text())


def closed(kind: str) -> list[str]:
    """The assistant's own words of a kind, the same in both splits."""
    return _pools()["closed"][kind]


def split_of(value: Any) -> Split:
    """The one split that may use an open value, by a hash of how it is written."""
    return "heldout" if zlib.crc32(str(value).casefold().encode()) % HELDOUT_ONE_IN == 0 else "train"


def draw(kind: str, split: Split, rng: random.Random) -> tuple[str, Any]:
    """How a random value of a kind is said, and the value itself; open values are of the given split only."""
    if kind in _CLOSED_SPOKEN:
        said = rng.choice(closed(kind))
        return _CLOSED_SPOKEN[kind](said, rng)
    while True:
        said, value = _OPEN_SPOKEN[kind](rng) if kind in _OPEN_SPOKEN else _made(kind, rng)
        if split_of(value) == split:
            return said, value


def invented_word(rng: random.Random) -> str:
    """A pronounceable word of two or three syllables that most likely is none."""
    syllables = (rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.choice((2, 2, 2, 3))))
    return "".join(syllables) + rng.choice(_CODAS)


def _made(kind: str, rng: random.Random) -> tuple[str, str]:
    """A value made from the patterns of a kind, said as it is written."""
    text = expand(rng.choice(_pools()["open"][kind]), rng)
    while slot := SLOT.search(text):
        text = text.replace(slot.group(), _part(slot.group(1), rng), 1)
    return text, text


def _part(kind: str, rng: random.Random) -> str:
    if kind == "word":
        return invented_word(rng)
    if kind == "Word":
        return invented_word(rng).capitalize()
    if kind == "minutes":
        return str(rng.randint(5, 50))
    return _made(kind, rng)[0]


def _plain(said: str, rng: random.Random) -> tuple[str, str]:
    return said, said


def _day(said: str, rng: random.Random) -> tuple[str, str]:
    return said, said.removeprefix("on ")


def _unit(said: str, rng: random.Random) -> tuple[str, str]:
    return rng.choice((said, said.removesuffix("s"))), said


def _percent(rng: random.Random) -> tuple[str, int]:
    value = rng.randint(1, 100)
    return rng.choice((f"{value}%", f"{value} percent", f"{value}")), value


def _temperature(rng: random.Random) -> tuple[str, float]:
    value: float = rng.randint(12, 29)
    if rng.random() < 0.25:
        value += 0.5
    return rng.choice((f"{value} degrees", f"{value}")), value


def _count(low: int, high: int) -> Callable[[random.Random], tuple[str, int]]:
    """Numbers mostly up to `high`, now and then up to ten times that."""

    def spoken(rng: random.Random) -> tuple[str, int]:
        value = rng.randint(low, high if rng.random() < 0.7 else 10 * high)
        return str(value), value

    return spoken


def _time(rng: random.Random) -> tuple[str, str]:
    hour, minute = rng.randrange(24), rng.choice((0, 0, 30, 5 * rng.randrange(12), rng.randrange(60), rng.randrange(60)))
    return rng.choice(_SAYINGS)(hour, minute), f"{hour:02}:{minute:02}"


def _half_day(hour: int, minute: int) -> str:
    """`7:05 pm`, or `7 pm` on the hour."""
    suffix = "am" if hour < 12 else "pm"
    minutes = f":{minute:02}" if minute else ""
    return f"{(hour + 11) % 12 + 1}{minutes} {suffix}"


def _full_day(hour: int, minute: int) -> str:
    return f"{hour:02}:{minute:02}"


_SAYINGS = (_half_day, _half_day, _full_day)
_CLOSED_SPOKEN: dict[str, Callable[[str, random.Random], tuple[str, str]]] = {
    "room": _plain,
    "color": _plain,
    "genre": _plain,
    "mode": _plain,
    "power": _plain,
    "door": _plain,
    "list": _plain,
    "day": _day,
    "unit": _unit,
}
_OPEN_SPOKEN: dict[str, Callable[[random.Random], tuple[str, Any]]] = {
    "percent": _percent,
    "temperature": _temperature,
    "time": _time,
    "amount": _count(1, 99),
    "quantity": _count(2, 30),
}
