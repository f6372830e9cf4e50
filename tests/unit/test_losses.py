"""Distillation losses against numbers worked out by hand and a dense float64 reference."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from supertiny.train.losses import cross_entropy, forward_kl

# A vocabulary of 4, student q = (1/2, 1/4, 1/8, 1/8): its logits are these logarithms plus any constant.
STUDENT = torch.tensor([[0.5, 0.25, 0.125, 0.125]], dtype=torch.float64).log() + 3.0


def logs(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


def test_cross_entropy_is_minus_the_log_of_the_targets_probability() -> None:
    assert cross_entropy(STUDENT, torch.tensor([1])).tolist() == pytest.approx([math.log(4)])


def test_forward_kl_counts_the_tail_as_one_more_outcome() -> None:
    # teacher keeps p(0) = 3/4, p(1) = 1/8; its tail is 1/8, the student's 1/4
    expected = 0.75 * math.log(0.75 / 0.5) + 0.125 * math.log(0.125 / 0.25) + 0.125 * math.log(0.125 / 0.25)
    assert forward_kl(STUDENT, torch.tensor([[0, 1]]), logs(0.75, 0.125)).tolist() == pytest.approx([expected])
    assert expected == pytest.approx(0.13081203)


def test_forward_kl_is_zero_where_the_student_has_the_teachers_kept_probabilities() -> None:
    assert forward_kl(STUDENT, torch.tensor([[1, 0]]), logs(0.25, 0.5)).item() == pytest.approx(0, abs=1e-12)


def test_forward_kl_goes_from_teacher_to_student() -> None:
    certain = forward_kl(STUDENT, torch.tensor([[0]]), logs(1.0))  # all of the teacher's mass on a token that the student gives 1/2
    assert certain.item() == pytest.approx(math.log(2))


def test_padding_of_the_top_k_counts_nothing() -> None:
    padded = forward_kl(STUDENT, torch.tensor([[0, 1, 0]]), logs(0.75, 0.125, 0.0))
    assert padded.item() == pytest.approx(forward_kl(STUDENT, torch.tensor([[0, 1]]), logs(0.75, 0.125)).item())


def test_kept_probabilities_that_add_up_to_more_than_one_by_rounding_have_no_tail() -> None:
    kl = forward_kl(STUDENT.float(), torch.tensor([[0, 1]]), torch.tensor([[0.75002, 0.25]]).log())
    assert kl.item() == pytest.approx(0.75002 * math.log(0.75002 / 0.5), abs=1e-6)


def dense_reference(logits: torch.Tensor, ids: list[int], probabilities: list[float]) -> float:
    """The same in plain Python, probability by probability."""
    exponentials = [math.exp(value) for value in logits.tolist()]
    q = [value / sum(exponentials) for value in exponentials]
    outcomes = [(p, q[token]) for token, p in zip(ids, probabilities, strict=True)]
    outcomes.append((1 - sum(probabilities), sum(q[token] for token in range(len(q)) if token not in ids)))
    return sum(p * math.log(p / other) for p, other in outcomes if p > 0)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_forward_kl_agrees_with_a_dense_float64_reference_and_is_never_negative(seed: int, k: int) -> None:
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 9, generator=random, dtype=torch.float64) * 4
    teacher = torch.softmax(torch.randn(5, 9, generator=random, dtype=torch.float64) * 3, -1)
    kept, ids = teacher.topk(k)
    expected = [dense_reference(logits[n], ids[n].tolist(), kept[n].tolist()) for n in range(5)]
    assert forward_kl(logits, ids, kept.log()).tolist() == pytest.approx(expected, abs=1e-9)
    assert forward_kl(logits.float(), ids, kept.log().float()).tolist() == pytest.approx(expected, abs=1e-4)
    assert min(expected) >= -1e-12


def test_gradients_are_those_of_finite_differences() -> None:
    logits = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    kept, ids = torch.softmax(torch.randn(3, 7, dtype=torch.float64), -1).topk(3)
    assert torch.autograd.gradcheck(lambda values: forward_kl(values, ids, kept.log()), (logits,))
    assert torch.autograd.gradcheck(lambda values: cross_entropy(values, torch.tensor([0, 3, 6])), (logits,))


def test_the_gradient_stays_finite_where_the_student_is_certain_and_the_teacher_has_no_tail() -> None:
    logits = torch.tensor([[80.0, 0.0, 0.0, -80.0]], requires_grad=True)
    forward_kl(logits, torch.tensor([[1, 0]]), torch.tensor([[0.0, float("-inf")]])).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 1] == pytest.approx(-1)
