"""Intervals of proportions, single and paired, and the verdict of non-inferiority. Pure statistics."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Literal, NamedTuple

from scipy.stats import binomtest

from supertiny.records import Record

GateVerdict = Literal["pass", "fail", "inconclusive"]


class Interval(Record):
    """A proportion with its interval."""

    value: float
    low: float
    high: float
    n: int
    """What it is a proportion of."""


class Difference(Record):
    """A difference of two proportions with its interval."""

    value: float
    low: float
    high: float


class Pairs(NamedTuple):
    """Counts of n prompts that two systems both answered."""

    both: int
    first_only: int
    second_only: int
    neither: int

    @property
    def n(self) -> int:
        """Prompts."""
        return sum(self)


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """A proportion and its score interval (Wilson, JASA 22, 1927), without continuity correction.

    Raises:
        ValueError: n is 0, or there are more successes than n.
    """
    interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return Interval(value=successes / n, low=float(interval.low), high=float(interval.high), n=n)


def count_pairs(first: Sequence[bool], second: Sequence[bool]) -> Pairs:
    """The counts of paired outcomes, given in the same order."""
    outcomes = list(zip(first, second, strict=True))
    return Pairs(*(outcomes.count(outcome) for outcome in ((True, True), (True, False), (False, True), (False, False))))


def paired_difference(pairs: Pairs, confidence: float = 0.95) -> Difference:
    """First proportion minus second, with the interval of Newcombe's method 10.

    Wilson's limits of both proportions, squared and added, less what their correlation phi takes away, where a positive phi has
    a continuity correction (R. G. Newcombe, Statistics in Medicine 17:2635-2650, 1998). It stays an interval where nothing
    differs: no discordant pair is no proof of equality.

    Raises:
        ValueError: there are no pairs.
    """
    first = wilson(pairs.both + pairs.first_only, pairs.n, confidence)
    second = wilson(pairs.both + pairs.second_only, pairs.n, confidence)
    phi = _correlation(pairs)
    value = (pairs.first_only - pairs.second_only) / pairs.n
    return Difference(
        value=value,
        low=value - _combined(first.value - first.low, second.high - second.value, phi),
        high=value + _combined(second.value - second.low, first.high - first.value, phi),
    )


def non_inferior(difference: Difference, margin: float) -> GateVerdict:
    """Whether the first is worse than the second by less than `margin`: pass if surely, fail if surely not, else inconclusive."""
    if difference.low > -margin:
        return "pass"
    return "fail" if difference.high < -margin else "inconclusive"


def _correlation(pairs: Pairs) -> float:
    """Phi of the 2 x 2 table, its numerator moved towards 0 by n/2 where it is positive; 0 where a margin is empty."""
    a, b, c, d = pairs
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    if margins == 0:
        return 0.0
    numerator = a * d - b * c
    return (max(numerator - pairs.n / 2, 0) if numerator > 0 else numerator) / sqrt(margins)


def _combined(one: float, other: float, phi: float) -> float:
    return sqrt(max(one**2 - 2 * phi * one * other + other**2, 0))
