"""Where an argument's value stands in its prompt, word for word."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from supertiny.records import Call


def ungrounded(calls: Sequence[Call], text: str) -> list[str]:
    """`argument=value` for every value that does not occur in the text."""
    return [f"{key}={value}" for call in calls for key, value in values(call) if not spans(value, text)]


def grounded_fraction(calls: Sequence[Call], text: str) -> float:
    """Share of the values that occur in the text; 1 where there are none."""
    total = sum(1 for call in calls for _ in values(call))
    return 1 - len(ungrounded(calls, text)) / total if total else 1.0


def values(call: Call) -> Iterator[tuple[str, str]]:
    """Each text value with its argument's name, those in lists too; other types are the schema's business."""
    for key, value in call.arguments.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str):
                yield key, item


def spans(value: Any, text: str) -> list[tuple[int, int]]:
    """Every (start, end) where a value stands in a text as whole words, without regard to case."""
    if not value.strip():
        return []
    return [match.span() for match in re.finditer(rf"(?<!\w){re.escape(value.strip())}(?!\w)", text, re.IGNORECASE)]
