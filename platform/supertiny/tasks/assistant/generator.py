"""Requests to the assistant with their right calls, made from phrasings and values; train and held-out share neither."""

from __future__ import annotations

import hashlib
import random
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from supertiny.records import Call, Prompt
from supertiny.tasks.assistant.grammar import SLOT, expand
from supertiny.tasks.assistant.tools import ARGUMENTS
from supertiny.tasks.assistant.values import Split, draw, invented_word, split_of

OUT_OF_SCOPE = "out_of_scope"
OUT_OF_SCOPE_FRACTION = 0.13
FREE_TEXT_KINDS = ("artist", "title", "contact", "city", "item", "label", "errand", "news")
FUNCTION_WORDS = {"a", "an", "any", "me", "my", "of", "please", "some", "the", "to"}
"""Words that a request may lack and still mean the same."""
_FREE_TEXT = ("errand}", "news}")


@dataclass(frozen=True)
class Request:
    """Something a person may ask."""

    text: str
    skeleton: str
    """The words around the values, in lower case: what a phrasing is."""
    values: tuple[tuple[str, Any], ...]
    """(kind, value) of every slot."""
    call: Call | None
    """The right call; None where no tool can do it."""

    def prompt(self) -> Prompt:
        """The request as a prompt; its id is a hash of the text."""
        return Prompt(
            id=hashlib.sha256(self.text.encode()).hexdigest()[:16],
            messages=[{"role": "user", "content": self.text}],
            slice="in_scope" if self.call else OUT_OF_SCOPE,
            reference=[self.call] if self.call else [],
        )


def prompts(split: Split, count: int, seed: int) -> list[Prompt]:
    """`count` prompts of a split, no text twice."""
    found: dict[str, Prompt] = {}
    for request in requests(split, seed):
        prompt = request.prompt()
        found.setdefault(prompt.id, prompt)
        if len(found) == count:
            break
    return list(found.values())


def requests(split: Split, seed: int, phrasings: dict[str, list[str]] | None = None, noise: float = 0.0) -> Iterator[Request]:
    """An endless stream of requests, the same for a seed; every tool equally often.

    Args:
        phrasings: patterns by tool to use instead of all of the split's.
        noise: share of the free-text values that are random words, of the requests with random words before or after them, and of those
            that lack some function words, so that what a model learns does not hang on the few words that the patterns have.
    """
    rng = random.Random(f"{split}/{seed}")
    patterns = phrasings or phrasings_of(split)
    tools = [name for name in patterns if name != OUT_OF_SCOPE]
    while True:
        outside = OUT_OF_SCOPE in patterns and rng.random() < OUT_OF_SCOPE_FRACTION
        name = OUT_OF_SCOPE if outside else rng.choice(tools)
        yield _request(name, rng.choice(patterns[name]), split, rng, noise)


@cache
def phrasings_of(split: Split) -> dict[str, list[str]]:
    """A split's patterns by tool, and those that no tool can do."""
    return {name: patterns[split] for name, patterns in _toml("phrasings.toml").items()}


@cache
def _toml(name: str) -> dict[str, Any]:
    return tomllib.loads(files("supertiny.tasks.assistant").joinpath(name).read_text())


def _request(name: str, pattern: str, split: Split, rng: random.Random, noise: float) -> Request:
    words, _, settled = pattern.partition(" => ")
    skeleton = _wrap(words, split, rng)
    if rng.random() < noise:
        skeleton = _thinned(skeleton, rng)
    if rng.random() < noise:
        skeleton = _surround(skeleton, rng)
    arguments = _settled(settled)
    values = []
    text = skeleton
    for slot in list(SLOT.finditer(skeleton)):
        argument, kind = slot.group(1), slot.group(2) or slot.group(1)
        said, value = draw(kind, split, rng)
        if kind in FREE_TEXT_KINDS and rng.random() < noise:
            said = value = babble(split, rng)
        text = text.replace(slot.group(), said, 1)
        arguments[argument] = value
        values.append((kind, value))
    call = None if name == OUT_OF_SCOPE else _call(name, arguments)
    return Request(_type(text, rng), skeleton, tuple(values), call)


def _call(name: str, arguments: dict[str, Any]) -> Call:
    """The call with its arguments in the schema's order, so that there is one right way to write it."""
    return Call(name=name, arguments={key: arguments[key] for key in ARGUMENTS[name] if key in arguments})


def _wrap(words: str, split: Split, rng: random.Random) -> str:
    """A sentence of the pattern with its slots open, and maybe something before and after."""
    wrappers = _toml("wrappers.toml")[split]
    sentence = " ".join(expand(words.removeprefix("!"), rng).split())
    if not words.startswith("!") and rng.random() < 0.4:
        sentence = rng.choice(wrappers["commands"]) + sentence
    if rng.random() < 0.2:
        sentence = rng.choice(wrappers["openings"]) + sentence
    if not sentence.endswith(_FREE_TEXT) and rng.random() < 0.25:
        sentence += rng.choice(wrappers["closings"])
    return sentence


def _thinned(sentence: str, rng: random.Random) -> str:
    """The sentence without about half of its function words."""
    return " ".join(word for word in sentence.split() if word not in FUNCTION_WORDS or rng.random() < 0.5)


def _surround(sentence: str, rng: random.Random) -> str:
    """The sentence with random words before it, after it, or both; none after free text, which they would be part of."""
    if rng.random() < 0.7:
        sentence = f"{babble('train', rng)}{rng.choice((', ', ' '))}{sentence}"
    if rng.random() < 0.5 and not sentence.endswith("}"):
        sentence = f"{sentence}{rng.choice((', ', ' '))}{babble('train', rng)}"
    return sentence


def babble(split: Split, rng: random.Random) -> str:
    """One to four random words of the split's: its patterns' words and invented ones."""
    while True:
        words = [rng.choice(_words()) if rng.random() < 0.6 else invented_word(rng) for _ in range(rng.choice((1, 1, 2, 2, 3, 4)))]
        text = " ".join(word.capitalize() if rng.random() < 0.2 else word for word in words)
        if split_of(text) == split:
            return text


@cache
def _words() -> list[str]:
    """Every word of the training patterns, once."""
    spoken = (re.sub(r"\{.*?\}| => .*", " ", pattern) for patterns in phrasings_of("train").values() for pattern in patterns)
    return sorted({word for text in spoken for word in re.findall(r"[a-z']+", text)})


def _type(text: str, rng: random.Random) -> str:
    """As somebody would type it: with a capital and a full stop, or without."""
    if rng.random() < 0.5:
        text = text[0].upper() + text[1:]
    return text + rng.choice(("", "", "."))


def _settled(text: str) -> dict[str, Any]:
    """`power=on, level=0` as arguments."""
    pairs = (item.split("=") for item in text.split(", ") if item)
    return {key: int(value) if value.isdigit() else value for key, value in pairs}
