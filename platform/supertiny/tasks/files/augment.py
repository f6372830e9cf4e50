"""More examples out of few: values swapped in the prompt and in its call at once.

A value stands word for word in its prompt, so any text that could fill its slot makes another true example. What may fill it:
another value of the slot, a recombination of the words of several, or invented words where the slot takes free text.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from supertiny.records import Call, Record, Tool
from supertiny.tasks.files.grounding import spans, values
from supertiny.tasks.files.rows import Row

_FREE_TEXT = {"type", "anyOf", "items", "description", "title", "default", "examples"}
_OPEN_RATIO = 0.3
Slot = tuple[str, str]
"""A tool's name and an argument's."""


class Mix(Record):
    """How often a stream changes what; each a probability."""

    swap: float = 0.7
    """That a value is replaced at all."""
    invent: float = 0.15
    """That the replacement of a free-text value is invented words."""
    recombine: float = 0.25
    """That it is words of several values of the slot."""
    lower: float = 0.1
    """That the whole prompt is in lower case."""
    out_of_scope: float = 0.1
    """That the example is an out-of-scope prompt, where there are any."""


class Fillers:
    """What may fill each slot, learnt from labelled rows.

    Args:
        rows: labelled rows; others are skipped.
        tools: their schemas say which arguments take free text.
    """

    def __init__(self, rows: Sequence[Row], tools: Sequence[Tool]) -> None:
        counts: dict[Slot, Counter[str]] = defaultdict(Counter)
        for row in rows:
            for call in row.calls or []:
                for key, value in values(call):
                    counts[call.name, key][value] += 1
        self._values = {slot: list(seen) for slot, seen in counts.items()}
        self._words = {slot: [value.split() for value in seen] for slot, seen in self._values.items()}
        free = _free_text_slots(tools)
        self._open = {slot for slot, seen in counts.items() if slot in free and len(seen) >= _OPEN_RATIO * seen.total()}

    def draw(self, slot: Slot, rng: random.Random, mix: Mix) -> str:
        """A text that could stand in the slot, which has been seen."""
        way = rng.random()
        if slot in self._open and way < mix.invent:
            return _recased(" ".join(invented_word(rng) for _ in rng.choice(self._words[slot])[:4]), rng)
        if slot in self._open and way < mix.invent + mix.recombine:
            length = len(rng.choice(self._words[slot]))
            return " ".join(rng.choice(rng.choice(self._words[slot])) for _ in range(length))
        return rng.choice(self._values[slot])


def examples(rows: Sequence[Row], tools: Sequence[Tool], seed: int, mix: Mix) -> Iterator[tuple[str, list[Call]]]:
    """An endless stream of (prompt, calls) from labelled rows, every row once a round."""
    fillers = Fillers(rows, tools)
    rng = random.Random(seed)
    in_scope = _rounds([row for row in rows if not row.out_of_scope], rng)
    out_of_scope = _rounds([row for row in rows if row.out_of_scope], rng)
    while True:
        row = next(out_of_scope if rng.random() < mix.out_of_scope else in_scope, None) or next(in_scope, None) or next(out_of_scope)
        text, calls = swapped(row.text, row.calls or [], fillers, rng, mix)
        yield lowered(text, calls) if rng.random() < mix.lower else (text, calls)


def swapped(text: str, calls: Sequence[Call], fillers: Fillers, rng: random.Random, mix: Mix) -> tuple[str, list[Call]]:
    """A prompt and its calls with some values replaced in both; a value that could stand in several places is left alone."""
    places = _places(text, calls)
    replacements: dict[tuple[Slot, str], str] = {}
    pieces, end = [], len(text)
    for (start, stop), (slot, value) in sorted(places.items(), reverse=True):
        if rng.random() < mix.swap:
            replacements[slot, value] = new = fillers.draw(slot, rng, mix)
            pieces += [text[stop:end], new]
            end = start
    pieces.append(text[:end])
    return "".join(reversed(pieces)), [_replaced(call, replacements) for call in calls]


def lowered(text: str, calls: Sequence[Call]) -> tuple[str, list[Call]]:
    """A prompt and its calls' values in lower case."""
    return text.lower(), [_mapped(call, lambda _, value: value.lower()) for call in calls]


def invented_word(rng: random.Random) -> str:
    """A word of one to four syllables that nobody has seen."""
    syllables = (rng.choice(_ONSETS) + rng.choice("aeiou") + rng.choice(_CODAS) for _ in range(rng.choice((1, 2, 2, 3, 3, 4))))
    return "".join(syllables)


_ONSETS = ["", *"bcdfghjklmnprstvwyz", "ch", "sh", "th", "br", "cr", "st", "tr", "pl", "gr", "qu", "x"]
_CODAS = ["", "", "", *"nrstlmdk", "ng", "ck", "th", "x", "é", "ll"]


def _places(text: str, calls: Sequence[Call]) -> dict[tuple[int, int], tuple[Slot, str]]:
    """The one place of each value, longest first, none inside another's; values that have no such place are left out."""
    found: dict[tuple[int, int], tuple[Slot, str]] = {}
    slots = [((call.name, key), value) for call in calls for key, value in values(call)]
    for (slot, value), times in sorted(Counter(slots).items(), key=lambda item: -len(item[0][1])):
        same = sum(1 for _, other in slots if other.casefold() == value.casefold())
        free = [span for span in spans(value, text) if not any(span[0] < stop and start < span[1] for start, stop in found)]
        if times == same == len(free) == 1:
            found[free[0]] = (slot, value)
    return found


def _replaced(call: Call, replacements: Mapping[tuple[Slot, str], str]) -> Call:
    return _mapped(call, lambda key, value: replacements.get(((call.name, key), value), value))


def _mapped(call: Call, change: Any) -> Call:
    """The call with each text value changed by `change(argument, value)`."""

    def new(key: str, value: Any) -> Any:
        if isinstance(value, list):
            return [new(key, item) for item in value]
        return change(key, value) if isinstance(value, str) else value

    return Call(name=call.name, arguments={key: new(key, value) for key, value in call.arguments.items()})


def _free_text_slots(tools: Sequence[Tool]) -> set[Slot]:
    """The arguments whose schema takes any text: no enum, pattern or format anywhere in it."""
    found = set()
    for tool in tools:
        for key, schema in tool["function"]["parameters"].get("properties", {}).items():
            keywords = set(re.findall(r'"(\w+)": ', json.dumps(schema)))
            if keywords <= _FREE_TEXT:
                found.add((tool["function"]["name"], key))
    return found


def _recased(text: str, rng: random.Random) -> str:
    return rng.choice((str.lower, str.lower, str.title, str.capitalize))(text)


def _rounds(rows: Sequence[Row], rng: random.Random) -> Iterator[Row]:
    """Every row in random order, again and again; nothing where there are no rows."""
    for _ in itertools.count() if rows else ():
        yield from rng.sample(rows, len(rows))
