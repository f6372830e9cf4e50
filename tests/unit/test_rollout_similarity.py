"""Near-duplicates: the search finds what comparing every pair finds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from supertiny.rollout.similarity import jaccard, near_duplicates, shingles

TEXTS = st.dictionaries(st.text("abc", min_size=1, max_size=3), st.text("ab ", max_size=14), max_size=12)


def test_shingles_are_all_runs_of_five_characters_case_and_white_space_aside() -> None:
    assert shingles("Ab  cdE") == {"ab cd", "b cde"}
    assert shingles("hi") == {"hi"}
    assert shingles("") == {""}


def test_the_similarity_is_the_shared_part_of_all_shingles() -> None:
    assert jaccard(shingles("abcdef"), shingles("abcdeg")) == 1 / 3


def test_of_two_similar_texts_the_one_whose_name_comes_first_is_kept() -> None:
    texts = {"p2": "switch on the light", "p1": "switch on the lights", "p3": "what time is it"}
    assert near_duplicates(texts, 0.8) == {"p2": ("p1", 15 / 16)}


def test_a_similarity_that_is_just_the_limit_is_none_too_many() -> None:
    texts = {"p1": "abcdefghi", "p2": "abcdefgh"}  # 4 of 5 shingles
    assert near_duplicates(texts, 0.8) == {}
    assert near_duplicates(texts, 0.79) == {"p2": ("p1", 0.8)}


def test_what_resembles_a_duplicate_alone_is_kept() -> None:
    texts = {"p1": "abcdefghij", "p2": "bcdefghijk", "p3": "cdefghijkl"}  # each 5 of 7 like its neighbour, 4 of 8 like the other
    assert near_duplicates(texts, 0.6) == {"p2": ("p1", 5 / 7)}


@given(TEXTS, st.sampled_from([0.3, 0.5, 0.8, 0.95]))
def test_it_finds_what_comparing_every_pair_finds(texts: dict[str, str], limit: float) -> None:
    kept: list[str] = []
    found = {}
    for name in sorted(texts):
        closest = min(((-jaccard(shingles(texts[name]), shingles(texts[other])), other) for other in kept), default=(0.0, ""))
        if -closest[0] > limit:
            found[name] = (closest[1], -closest[0])
        else:
            kept.append(name)
    assert near_duplicates(texts, limit) == found
