"""Divergences over the whole vocabulary against numbers worked out by hand and a reference in plain Python's float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from supertiny.train.divergences import generalized_jsd, reverse_kl

STUDENT = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log() - 2.0
TEACHER = torch.tensor([[0.25, 0.5, 0.25]], dtype=torch.float64).log() + 5.0


def kl(one: list[float], other: list[float]) -> float:
    return sum(p * math.log(p / q) for p, q in zip(one, other, strict=True))


def test_reverse_kl_goes_from_student_to_teacher() -> None:
    # 1/2 ln 2 + 1/4 ln 1/2 + 0
    assert reverse_kl(STUDENT, TEACHER).item() == pytest.approx(0.25 * math.log(2))
    certain = torch.tensor([[0.0, -100.0, -100.0]], dtype=torch.float64)
    assert reverse_kl(certain, TEACHER).item() == pytest.approx(math.log(4))  # the student is sure of what the teacher gives 1/4


def test_the_generalised_jsd_weighs_the_teacher_by_beta() -> None:
    teacher, student, mixture = [0.25, 0.5, 0.25], [0.5, 0.25, 0.25], [0.4375, 0.3125, 0.25]  # 1/4 teacher + 3/4 student
    expected = 0.25 * kl(teacher, mixture) + 0.75 * kl(student, mixture)
    assert generalized_jsd(STUDENT, TEACHER, 0.25).item() == pytest.approx(expected)
    assert expected == pytest.approx(0.03200932)


def test_the_generalised_jsd_is_symmetric_at_one_half_and_tends_to_both_kls() -> None:
    assert generalized_jsd(STUDENT, TEACHER, 0.5).item() == pytest.approx(generalized_jsd(TEACHER, STUDENT, 0.5).item())
    skewed = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).log()
    assert generalized_jsd(skewed, TEACHER, 1e-6).item() / 1e-6 == pytest.approx(reverse_kl(TEACHER, skewed).item(), rel=1e-4)
    assert generalized_jsd(skewed, TEACHER, 1 - 1e-6).item() / 1e-6 == pytest.approx(reverse_kl(skewed, TEACHER).item(), rel=1e-4)


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.1, 1.5])
def test_a_beta_that_leaves_no_mixture_is_refused(beta: float) -> None:
    with pytest.raises(ValueError, match=f"jsd_beta {beta} is not between 0 and 1"):
        generalized_jsd(STUDENT, TEACHER, beta)


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.95))
@settings(max_examples=40, deadline=None)
def test_both_agree_with_a_dense_float64_reference_and_are_never_negative(seed: int, beta: float) -> None:
    random = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(4, 9, generator=random, dtype=torch.float64) * 3 for _ in range(2))
    for n in range(4):
        q, p = (torch.softmax(logits[n], -1).tolist() for logits in (student, teacher))
        mixture = [beta * a + (1 - beta) * b for a, b in zip(p, q, strict=True)]
        jsd = beta * kl(p, mixture) + (1 - beta) * kl(q, mixture)
        assert min(kl(q, p), jsd) >= -1e-12
        assert reverse_kl(student[n : n + 1], teacher[n : n + 1]).item() == pytest.approx(kl(q, p), abs=1e-9)
        assert generalized_jsd(student[n : n + 1].float(), teacher[n : n + 1].float(), beta).item() == pytest.approx(jsd, abs=1e-5)


def test_gradients_are_those_of_finite_differences() -> None:
    student = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    teacher = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(lambda logits: reverse_kl(logits, teacher), (student,))
    assert torch.autograd.gradcheck(lambda logits: generalized_jsd(logits, teacher, 0.3), (student,))
