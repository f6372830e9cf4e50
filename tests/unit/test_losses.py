"""The terms against numbers worked out by hand and a reference in plain Python's float64."""

import math
from collections.abc import Callable

import pytest
import torch
from dense_student import look
from hypothesis import given, settings
from hypothesis import strategies as st

from supertiny.train.losses import TERMS, Taught, cross_entropy, divergent, forward_kl, has_teacher, tail_penalty

# A vocabulary of 4, student q = (1/2, 1/4, 1/8, 1/8): its logits are these logarithms plus any constant.
STUDENT = torch.tensor([[0.5, 0.25, 0.125, 0.125]], dtype=torch.float64).log() + 3.0


def logs(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


def value(term: Callable[..., torch.Tensor], ids: list[int], *probabilities: float, target: int = 0) -> float:
    """A term where the student is STUDENT and the teacher kept these tokens."""
    taught = Taught(torch.tensor([target]), torch.tensor([ids]), logs(*probabilities))
    return float(term(look(STUDENT, taught), taught.teacher_logprobs_NK))


def test_cross_entropy_is_minus_the_log_of_the_targets_probability() -> None:
    assert value(cross_entropy, [0], 1.0, target=1) == pytest.approx(math.log(4))


def test_forward_kl_counts_the_tail_as_one_more_outcome() -> None:
    # teacher keeps p(0) = 3/4, p(1) = 1/8; its tail is 1/8, the student's 1/4
    expected = 0.75 * math.log(0.75 / 0.5) + 0.125 * math.log(0.125 / 0.25) + 0.125 * math.log(0.125 / 0.25)
    assert value(forward_kl, [0, 1], 0.75, 0.125) == pytest.approx(expected)
    assert expected == pytest.approx(0.13081203)


def test_forward_kl_is_zero_where_the_student_has_the_teachers_kept_probabilities() -> None:
    assert value(forward_kl, [1, 0], 0.25, 0.5) == pytest.approx(0, abs=1e-12)


def test_forward_kl_goes_from_teacher_to_student() -> None:
    assert value(forward_kl, [0], 1.0) == pytest.approx(math.log(2))  # all the teacher's mass on a token that the student gives 1/2


def test_padding_of_the_top_k_counts_nothing() -> None:
    assert value(forward_kl, [0, 1, 0], 0.75, 0.125, 0.0) == pytest.approx(value(forward_kl, [0, 1], 0.75, 0.125))


def test_kept_probabilities_that_add_up_to_more_than_one_by_rounding_have_no_tail() -> None:
    assert value(forward_kl, [0, 1], 0.75002, 0.25) == pytest.approx(0.75002 * math.log(0.75002 / 0.5), abs=1e-12)


def test_the_tail_penalty_is_the_students_mass_on_its_likeliest_tokens_that_the_teacher_did_not_keep() -> None:
    assert value(tail_penalty, [1, 3], 0.6, 0.3) == pytest.approx(0.5)  # of tokens 0 and 1 the teacher did not keep 0
    assert value(tail_penalty, [3, 2], 0.6, 0.3) == pytest.approx(0.75)


def test_the_tail_penalty_is_zero_where_the_student_prefers_what_the_teacher_kept() -> None:
    assert value(tail_penalty, [1, 0], 0.2, 0.1) == 0


def test_a_position_without_teacher_has_cross_entropy_alone() -> None:
    without = [value(term, [0, 0], 0.0, 0.0, target=1) for term in (cross_entropy, forward_kl, tail_penalty)]
    assert without == pytest.approx([math.log(4), 0, 0])


def test_positions_with_a_teacher_are_those_where_it_kept_anything() -> None:
    assert has_teacher(torch.tensor([[-0.1, float("-inf")], [float("-inf"), float("-inf")]])).tolist() == [True, False]


def test_the_divergence_mask_lets_through_what_differs_by_at_least_the_threshold() -> None:
    taught = Taught(torch.tensor([0, 0]), torch.tensor([[0], [0]]), torch.tensor([[1.0], [0.5]], dtype=torch.float64).log())
    student = look(STUDENT.repeat(2, 1), taught)  # ln 2 from the first teacher, 0 from the second
    assert divergent(student, taught.teacher_logprobs_NK, 0.69).tolist() == [True, False]
    assert divergent(student, taught.teacher_logprobs_NK, 0.70).tolist() == [False, False]


def reference(logits: list[float], target: int, kept: dict[int, float]) -> dict[str, float]:
    """Every term in plain Python, probability by probability."""
    q = [math.exp(each) / sum(math.exp(other) for other in logits) for each in logits]
    outcomes = [(p, q[token]) for token, p in kept.items()]
    outcomes.append((1 - sum(kept.values()), sum(each for token, each in enumerate(q) if token not in kept)))
    likeliest = sorted(range(len(q)), key=lambda token: -q[token])[: len(kept)]
    return {
        "cross_entropy": -math.log(q[target]),
        "forward_kl": sum(p * math.log(p / other) for p, other in outcomes if p > 0),
        "tail_penalty": sum(q[token] for token in likeliest if token not in kept),
    }


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
@settings(max_examples=60)
def test_every_term_agrees_with_a_dense_float64_reference_and_is_never_negative(seed: int, k: int) -> None:
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 9, generator=random, dtype=torch.float64) * 4
    kept, ids = torch.softmax(torch.randn(5, 9, generator=random, dtype=torch.float64) * 3, -1).topk(k)
    taught = Taught(torch.randint(9, (5,), generator=random), ids, kept.log())
    outcomes = [dict(zip(ids[n].tolist(), kept[n].tolist(), strict=True)) for n in range(5)]
    expected = [reference(logits[n].tolist(), int(taught.targets_N[n]), outcomes[n]) for n in range(5)]
    for name, term in TERMS.items():
        exact = [row[name] for row in expected]
        assert min(exact) >= -1e-12
        assert term(look(logits, taught), taught.teacher_logprobs_NK).tolist() == pytest.approx(exact, abs=1e-9)
        single = taught.teacher_logprobs_NK.float()
        assert term(look(logits.float(), taught), single).tolist() == pytest.approx(exact, abs=1e-4)


@pytest.mark.parametrize("name", TERMS)
def test_a_terms_gradient_is_that_of_finite_differences(name: str) -> None:
    logits = torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(4), requires_grad=True)
    kept, ids = torch.softmax(torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(5)), -1).topk(3)
    taught = Taught(torch.tensor([0, 3, 6]), ids, kept.log())
    assert torch.autograd.gradcheck(lambda values: TERMS[name](look(values, taught), taught.teacher_logprobs_NK), (logits,))
