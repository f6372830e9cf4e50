"""Who gets the treatment: sticky by session, and growing the fraction moves nobody back."""

from __future__ import annotations

import hashlib
import uuid
from typing import Literal

ArmName = Literal["student", "teacher"]
"""The treatment and the control of the A/B."""

_BITS = 53
"""What a float holds exactly, so that a position never rounds up to 1."""


def session_of(header: str | None, user: str | None) -> str:
    """What a request sticks by: its session header, else its `user`, else itself alone."""
    if header:
        return f"session:{header}"
    if user:
        return f"user:{user}"
    return f"request:{uuid.uuid4()}"


def position(salt: str, session: str) -> float:
    """A session's place in [0, 1): uniform over sessions, always the same for one salt and session."""
    digest = hashlib.sha256(f"{salt}\0{session}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> (64 - _BITS)) * 2.0**-_BITS


def assign(salt: str, session: str, traffic_fraction: float) -> ArmName:
    """The arm of a session: the student where its position is under the fraction, so a larger fraction only adds sessions."""
    return "student" if position(salt, session) < traffic_fraction else "teacher"
