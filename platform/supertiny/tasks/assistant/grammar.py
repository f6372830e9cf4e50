"""Phrasing patterns: `(a|b)` one of, `[a]` maybe, `{slot}` a value to be filled in; they nest."""

from __future__ import annotations

import random
import re
from functools import cache

_TOKENS = re.compile(r"[()\[\]|]|[^()\[\]|]+")
SLOT = re.compile(r"\{(\w+)(?::(\w+))?\}")


class Choice(tuple[tuple[object, ...], ...]):
    """Alternatives, each a sequence of texts and choices."""


def expand(pattern: str, rng: random.Random) -> str:
    """One sentence of a pattern, its slots still open."""
    return _say(parse(pattern), rng)


@cache
def parse(pattern: str) -> Choice:
    """The pattern as nested choices.

    Raises:
        ValueError: a bracket is not closed, or closed by the other kind.
    """
    tokens = _TOKENS.findall(pattern)
    choice, rest = _alternatives(tokens, 0, "")
    if rest != len(tokens):
        raise ValueError(f"{pattern!r}: unexpected {tokens[rest]!r}")
    return choice


def _alternatives(tokens: list[str], at: int, closing: str) -> tuple[Choice, int]:
    """The alternatives from token `at` to `closing`, and where they end."""
    alternatives: list[tuple[object, ...]] = []
    sequence: list[object] = []
    while at < len(tokens) and tokens[at] not in (")", "]"):
        token = tokens[at]
        at += 1
        if token == "|":
            alternatives.append(tuple(sequence))
            sequence = []
        elif token in "([":
            inner, at = _alternatives(tokens, at, ")" if token == "(" else "]")
            sequence.append(Choice((*inner, ())) if token == "[" else inner)
        else:
            sequence.append(token)
    if closing and (at == len(tokens) or tokens[at] != closing):
        raise ValueError(f"{''.join(tokens)!r}: {closing!r} is missing")
    return Choice((*alternatives, tuple(sequence))), at + bool(closing)


def _say(choice: Choice, rng: random.Random) -> str:
    return "".join(_say(part, rng) if isinstance(part, Choice) else str(part) for part in rng.choice(choice))
