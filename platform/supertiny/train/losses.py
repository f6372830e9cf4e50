"""What distillation minimises, in nats a token: each term a function of what student and teacher say at N positions.

Shapes: N completion tokens (a flat list over the rows of a batch), V vocabulary, K kept teacher tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Student:
    """The student's log-probabilities that the terms take, made from V logits a position by `chunked_losses`."""

    target_N: Tensor
    """Of the completion's token."""
    kept_NK: Tensor
    """Of the tokens that the teacher kept; finite and without meaning where the teacher kept fewer than K."""
    tail_N: Tensor
    """Of all tokens that the teacher did not keep, together."""
    confident_NK: Tensor
    """Of those of the student's own K likeliest tokens that the teacher did not keep; -inf for the others of the K."""


@dataclass(frozen=True)
class Taught:
    """What is to be learnt at N positions."""

    targets_N: Tensor
    """int64, the completion's tokens."""
    teacher_ids_NK: Tensor
    """int64, the tokens that the teacher kept; K < V."""
    teacher_logprobs_NK: Tensor
    """Natural log at temperature 1; -inf where the teacher kept fewer than K, or nothing at all."""

    def part(self, positions: slice) -> Taught:
        """The same at some of the positions."""
        return Taught(self.targets_N[positions], self.teacher_ids_NK[positions], self.teacher_logprobs_NK[positions])

    def to(self, device: torch.device | str) -> Taught:
        """The same on a device."""
        return Taught(self.targets_N.to(device), self.teacher_ids_NK.to(device), self.teacher_logprobs_NK.to(device))


Term = Callable[[Student, Tensor], Tensor]


def cross_entropy(student: Student, teacher_logprobs_NK: Tensor) -> Tensor:
    """Negative log-likelihood of each completion token under the student: -log q(target).

    On accepted completions alone this is rejection-sampling fine-tuning (arXiv 2308.01825).

    Args:
        teacher_logprobs_NK: not used; every term takes the same.

    Returns:
        float (N,).
    """
    return -student.target_N


def forward_kl(student: Student, teacher_logprobs_NK: Tensor) -> Tensor:
    """Forward KL(teacher || student) at each position, over K + 1 outcomes: the kept tokens and, as one, all the others.

    sum_k p_k (log p_k - log q_k) + p_tail (log p_tail - log q_tail), with p_tail = 1 - sum_k p_k and q_tail = 1 - sum_k q_k.
    Merging outcomes never raises a KL (data-processing inequality), so this is a lower bound of the full one, 0 exactly where
    the student agrees on every kept token; without the tail's term the student could move mass off the kept tokens and the
    truncated sum would fall below 0 (the bias of top-k caches: "Sparse Logit Sampling", arXiv 2503.16870).

    Args:
        teacher_logprobs_NK: the teacher's, natural log at temperature 1, -inf where it kept fewer than K.

    Returns:
        float (N,), never below 0 but for rounding; 0, whatever the student says, where the teacher kept nothing.
    """
    p_NK = teacher_logprobs_NK.exp()
    p_tail_N = (1 - p_NK.sum(-1)).clamp(min=0)
    kept_N = (torch.xlogy(p_NK, p_NK) - p_NK * student.kept_NK).sum(-1)
    return kept_N + torch.xlogy(p_tail_N, p_tail_N) - p_tail_N * student.tail_N


def tail_penalty(student: Student, teacher_logprobs_NK: Tensor) -> Tensor:
    """The probability that the student gives to those of its own K likeliest tokens that the teacher did not keep: sum q_v.

    STAR's constraint on the truncated forward KL (arXiv 2602.03022: its V_m without V_k, with m = k = 100 and a weight of 10; the
    formula is known from secondary notes of the paper). It pushes down confident errors and leaves the long tail alone, so that
    RL finds something to explore. Which tokens these are is taken as given: no gradient flows through the choice.

    Args:
        teacher_logprobs_NK: the teacher's, -inf where it kept fewer than K.

    Returns:
        float (N,), in [0, 1]; 0 where the teacher kept nothing, since then nothing is known to be outside.
    """
    return student.confident_NK.exp().sum(-1) * has_teacher(teacher_logprobs_NK)


TERMS: dict[str, Term] = {"cross_entropy": cross_entropy, "forward_kl": forward_kl, "tail_penalty": tail_penalty}
"""By the name that a config gives a weight to."""
TEACHER_TERMS = frozenset({"forward_kl", "tail_penalty"})
"""Those that say nothing at a position without the teacher's top-k."""


def has_teacher(teacher_logprobs_NK: Tensor) -> Tensor:
    """Where the teacher kept anything: bool (N,)."""
    return (teacher_logprobs_NK > float("-inf")).any(-1)


def divergent(student: Student, teacher_logprobs_NK: Tensor, min_divergence: float) -> Tensor:
    """Where student and teacher differ enough to teach: bool (N,), without a gradient.

    The forward KL over K + 1 outcomes is at least `min_divergence` nats. "LightReasoner" (arXiv 2510.07962) chooses the steps to learn
    from by such a threshold on the KL between a stronger and a weaker model.
    """
    return forward_kl(student, teacher_logprobs_NK).detach() >= min_divergence
