import math
import random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supertiny.evaluate.compare import Difference, Pairs, count_pairs, non_inferior, paired_difference, wilson

counts = st.integers(0, 400)
tables = st.builds(Pairs, counts, counts, counts, counts).filter(lambda pairs: pairs.n > 0)


def test_wilson_gives_newcombes_published_limits() -> None:
    # R. G. Newcombe, Statistics in Medicine 17:857-872 (1998), table I, method 3: 81 of 263, and 0 of 20.
    interval = wilson(81, 263)
    assert (round(interval.low, 4), round(interval.high, 4)) == (0.2553, 0.3662)
    assert (round(wilson(0, 20).low, 4), round(wilson(0, 20).high, 4)) == (0.0, 0.1611)


def test_wilson_is_the_solution_of_the_score_equation() -> None:
    z = 1.959963984540054
    interval = wilson(930, 1000)
    for limit in (interval.low, interval.high):
        assert abs(0.93 - limit) == pytest.approx(z * math.sqrt(limit * (1 - limit) / 1000))


@pytest.mark.parametrize(
    ("pairs", "low", "high", "digits"),
    [
        # Newcombe, Statistics in Medicine 17:2635-2650 (1998), method 10 on (36, 12, 2, 0); phi is negative.
        (Pairs(36, 12, 2, 0), 0.0569, 0.3404, 4),
        # Altman et al., Statistics with Confidence (2000), table 6.2; phi is positive and its correction counts.
        (Pairs(14, 5, 0, 22), 0.011, 0.226, 3),
        # Fagerland, Lydersen, Laake, Statistics in Medicine 33 (2014), airway hyper-responsiveness.
        (Pairs(1, 1, 7, 12), -0.507, -0.026, 3),
    ],
)
def test_paired_difference_gives_published_limits(pairs: Pairs, low: float, high: float, digits: int) -> None:
    difference = paired_difference(pairs)
    assert (round(difference.low, digits), round(difference.high, digits)) == (low, high)


def test_paired_difference_without_discordant_pairs_is_worked_out_by_hand() -> None:
    # 98 of 100 both right, 2 both wrong: phi = (98 * 2 - 50) / sqrt(98 * 2 * 98 * 2) = 146 / 196, both limits by Wilson.
    one = wilson(98, 100)
    below, above, phi = one.value - one.low, one.high - one.value, 146 / 196
    half = math.sqrt(below**2 - 2 * phi * below * above + above**2)
    difference = paired_difference(Pairs(98, 0, 0, 2))
    assert difference.value == 0
    assert difference.high == pytest.approx(half)
    assert difference.low == pytest.approx(-half)


@pytest.mark.parametrize("pairs", [Pairs(1000, 0, 0, 0), Pairs(0, 0, 0, 1000)])
def test_complete_agreement_still_leaves_an_interval(pairs: Pairs) -> None:
    difference = paired_difference(pairs)
    assert difference.low == -difference.high
    assert 0.003 < difference.high < 0.004  # Wilson's z^2 / (n + z^2) = 3.84 / 1003.84


@given(tables)
def test_the_interval_holds_the_difference_and_stays_in_range(pairs: Pairs) -> None:
    difference = paired_difference(pairs)
    assert -1 - 1e-9 <= difference.low <= difference.value <= difference.high <= 1 + 1e-9


@given(tables)
def test_swapping_the_systems_mirrors_the_interval(pairs: Pairs) -> None:
    forward = paired_difference(pairs)
    back = paired_difference(Pairs(pairs.both, pairs.second_only, pairs.first_only, pairs.neither))
    assert back.value == pytest.approx(-forward.value)
    assert back.low == pytest.approx(-forward.high)
    assert back.high == pytest.approx(-forward.low)


@given(tables)
def test_more_confidence_widens_the_interval(pairs: Pairs) -> None:
    narrow, wide = paired_difference(pairs, 0.8), paired_difference(pairs, 0.99)
    assert wide.low <= narrow.low + 1e-12
    assert wide.high >= narrow.high - 1e-12


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_counts_add_up_to_both_margins(outcomes: list[tuple[bool, bool]]) -> None:
    first, second = zip(*outcomes, strict=True)
    pairs = count_pairs(first, second)
    assert pairs.n == len(outcomes)
    assert pairs.both + pairs.first_only == sum(first)
    assert pairs.both + pairs.second_only == sum(second)


def test_unequal_lists_are_refused() -> None:
    with pytest.raises(ValueError, match="longer"):
        count_pairs([True], [True, False])


@pytest.mark.parametrize("probabilities", [(0.9, 0.04, 0.02, 0.04), (0.96, 0.01, 0.02, 0.01), (0.5, 0.2, 0.1, 0.2)])
def test_the_interval_covers_the_truth_about_95_times_in_100(probabilities: tuple[float, ...]) -> None:
    draw = random.Random(0)
    truth = probabilities[1] - probabilities[2]
    covered = []
    for _ in range(400):
        cells = draw.choices(range(4), probabilities, k=300)
        difference = paired_difference(Pairs(*(cells.count(cell) for cell in range(4))))
        covered.append(difference.low <= truth <= difference.high)
    assert 0.92 <= fmean(covered) <= 0.99


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.049, 0.01, "pass"),
        (0.01, 0.03, "pass"),
        (-0.05, 0.01, "inconclusive"),
        (-0.08, -0.02, "inconclusive"),
        (-0.08, -0.05, "inconclusive"),
        (-0.09, -0.051, "fail"),
    ],
)
def test_the_verdict_needs_the_whole_interval_on_one_side_of_the_margin(low: float, high: float, verdict: str) -> None:
    assert non_inferior(Difference(value=(low + high) / 2, low=low, high=high), 0.05) == verdict
