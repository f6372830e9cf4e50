"""The A/B assignment: sticky, monotone in the fraction, and as large as asked."""

import math

from hypothesis import given
from hypothesis import strategies as st

from supertiny.serving.split import assign, position, session_of

fractions = st.floats(0, 1)


@given(st.text(), st.text(), fractions)
def test_a_session_always_gets_the_same_arm(salt: str, session: str, fraction: float) -> None:
    assert assign(salt, session, fraction) == assign(salt, session, fraction)


@given(st.text(), st.text(), fractions, fractions)
def test_raising_the_fraction_keeps_everyone_who_was_in_the_treatment(salt: str, session: str, one: float, other: float) -> None:
    smaller, larger = sorted((one, other))
    if assign(salt, session, smaller) == "student":
        assert assign(salt, session, larger) == "student"


def test_zero_sends_nobody_and_one_sends_everybody_to_the_student() -> None:
    sessions = [f"session:{index}" for index in range(1000)]
    assert {assign("salt", session, 0.0) for session in sessions} == {"teacher"}
    assert {assign("salt", session, 1.0) for session in sessions} == {"student"}


def test_the_share_of_sessions_lies_within_five_standard_errors_of_the_fraction() -> None:
    count, fraction = 20_000, 0.3
    treated = sum(assign("salt", f"session:{index}", fraction) == "student" for index in range(count))
    assert abs(treated / count - fraction) < 5 * math.sqrt(fraction * (1 - fraction) / count)


def test_another_salt_draws_the_sessions_afresh() -> None:
    sessions = [f"session:{index}" for index in range(2000)]
    both = sum(assign("one", session, 0.5) == assign("two", session, 0.5) == "student" for session in sessions)
    assert 0.2 < both / len(sessions) < 0.3  # independent draws: a quarter in both


def test_salt_and_session_are_kept_apart() -> None:
    assert position("ab", "c") != position("a", "bc")


def test_a_session_header_goes_before_the_user_and_the_user_before_the_request() -> None:
    assert session_of("s1", "u1") == "session:s1"
    assert session_of(None, "u1") == "user:u1"
    assert session_of(None, "s1") != session_of("s1", None)
    assert session_of(None, None) != session_of(None, None)
