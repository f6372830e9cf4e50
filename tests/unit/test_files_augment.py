"""Swapping values: an example stays true whatever is swapped."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from supertiny.records import Call, Tool
from supertiny.tasks.calls import check_schema
from supertiny.tasks.files.augment import Fillers, Mix, examples, lowered, swapped
from supertiny.tasks.files.grounding import spans, ungrounded
from supertiny.tasks.files.rows import Row, Shares, read_rows

ALWAYS = Mix(swap=1, invent=0, recombine=0, lower=0, out_of_scope=0)


def tool(**properties: Any) -> Tool:
    return {"type": "function", "function": {"name": "play", "parameters": {"type": "object", "properties": properties}}}


TOOLS = [tool(artist={"type": "string"}, track={"type": "string"}, service={"enum": ["Deezer", "Spotify"]}, many={"type": "array"})]


def row(text: str, **arguments: Any) -> Row:
    return Row(id=text, text=text, split="gold", calls=[Call(name="play", arguments=arguments)], out_of_scope=False)


ROWS = [
    row("play Hey Jude by The Beatles", track="Hey Jude", artist="The Beatles"),
    row("play Hurt by Johnny Cash on Deezer", track="Hurt", artist="Johnny Cash", service="Deezer"),
    row("play anything by Nina", artist="Nina"),
]


def swap(source: Row, fillers: dict[str, str]) -> tuple[str, dict[str, Any]]:
    """Every value swapped for the only filler of its slot."""
    rows = [row(value, **{key: value}) for key, value in fillers.items()]
    text, calls = swapped(source.text, source.calls or [], Fillers(rows, TOOLS), random.Random(0), ALWAYS)
    return text, calls[0].arguments


def test_a_value_changes_in_prompt_and_call_at_once() -> None:
    text, arguments = swap(ROWS[0], {"track": "Imagine", "artist": "John Lennon"})
    assert text == "play Imagine by John Lennon"
    assert arguments == {"track": "Imagine", "artist": "John Lennon"}


def test_a_value_inside_another_is_found_outside_it() -> None:
    source = row("play Jude from Hey Jude", artist="Jude", track="Hey Jude")
    assert swap(source, {"artist": "Ann", "track": "Bob"}) == ("play Ann from Bob", {"artist": "Ann", "track": "Bob"})


def test_a_value_that_stands_in_two_places_is_left_alone() -> None:
    source = row("play play by Ann", track="play", artist="Ann")
    assert swap(source, {"track": "stop", "artist": "Bob"}) == ("play play by Bob", {"track": "play", "artist": "Bob"})


def test_a_value_of_two_slots_is_left_alone() -> None:
    source = row("play Queen", track="Queen", artist="Queen")
    assert swap(source, {"track": "Hurt", "artist": "Bob"})[0] == "play Queen"


def test_a_part_of_a_word_is_no_place() -> None:
    assert spans("art", "play artist art") == [(12, 15)]
    assert spans("R&B", "add r&b, now") == [(4, 7)]
    assert spans("", "anything") == []


def test_values_in_lists_are_swapped_each() -> None:
    source = row("play Ann and Bob", many=["Ann", "Bob"])
    rows = [row("Cleo", many=["Cleo"])]
    text, calls = swapped(source.text, source.calls or [], Fillers(rows, TOOLS), random.Random(0), ALWAYS)
    assert (text, calls[0].arguments) == ("play Cleo and Cleo", {"many": ["Cleo", "Cleo"]})


def test_an_argument_with_an_enum_takes_no_invented_words() -> None:
    mix = Mix(swap=1, invent=1, recombine=0, lower=0, out_of_scope=0)
    for _, calls in itertools.islice(examples(ROWS, TOOLS, 0, mix), 300):
        check_schema(calls, TOOLS)
        assert calls[0].arguments.get("artist") not in {"The Beatles", "Johnny Cash", "Nina"}


def test_lower_case_is_lower_in_both() -> None:
    text, calls = lowered(ROWS[0].text, ROWS[0].calls or [])
    assert text == "play hey jude by the beatles"
    assert calls[0].arguments == {"track": "hey jude", "artist": "the beatles"}


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_every_example_stays_grounded_and_keeps_its_arguments(seed: int) -> None:
    shapes = {frozenset((source.calls or [])[0].arguments) for source in ROWS}
    for text, calls in itertools.islice(examples(ROWS, TOOLS, seed, Mix()), 20):
        assert not ungrounded(calls, text)
        assert frozenset(calls[0].arguments) in shapes


def test_out_of_scope_rows_come_in_their_share() -> None:
    other = Row(id="o", text="what is love", split="gold", calls=[], out_of_scope=True)
    drawn = list(itertools.islice(examples([*ROWS, other], TOOLS, 0, Mix(out_of_scope=0.25)), 2000))
    assert 0.2 < sum(not calls for _, calls in drawn) / 2000 < 0.3


def test_a_stream_is_the_same_for_a_seed() -> None:
    one, same, other = (list(itertools.islice(examples(ROWS, TOOLS, seed, Mix()), 50)) for seed in (1, 1, 2))
    assert one == same != other


def test_rows_keep_their_split_when_others_join(tmp_path: Path) -> None:
    shares = Shares(holdout_fraction=0.3, gold_fraction=0.5, salt="")
    lines = [f'{{"id": "{number}", "prompt": "text {number}"}}\n' for number in range(100)]
    (tmp_path / "few").write_text("".join(lines[:50]))
    (tmp_path / "all").write_text("".join(lines))
    (tmp_path / "none").write_text("")
    few, everything = (read_rows(tmp_path / "none", [tmp_path / name], shares) for name in ("few", "all"))
    assert {found.id: found.split for found in few}.items() <= {found.id: found.split for found in everything}.items()
