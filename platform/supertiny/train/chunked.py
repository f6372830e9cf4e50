"""The loss terms from hidden states and the output embedding, some positions at a time: a batch's logits never exist together.

A language model's logits are its largest tensor by far (2,048 tokens of a vocabulary of 151,936 take 1.2 GB in float32), and a plain
distillation loss holds several of that shape. Here a chunk of positions goes through the output embedding, the loss and the gradient
before the next one, all in the forward pass (as in Liger's fused cross-entropy, arXiv 2410.10989): for the backward pass no logits
have to be kept, or computed again.

Within a chunk the terms see the logits only through a few numbers a position, so that the gradient takes one pass over the vocabulary.

Shapes: N positions, C those of one chunk, D model width, V vocabulary, K kept teacher tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from supertiny.train.losses import TERMS, Student, Taught, divergent, has_teacher
from supertiny.train.objective import Objective

CHUNK_LOGITS = 2**25
"""Logits that one chunk may hold: 134 MB in float32."""
ENTROPY_POSITIONS = 8
"""Positions whose logits are copied at once, for the entropy."""
_NEVER = -1e4
"""A logit so far below the largest that its probability is 0 in any type."""
WEIGHT_ROWS = 4096
"""Rows of the output embedding whose gradient is added up at once, so that their product stays in the cache."""


def chunked_losses(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    taught: Taught,
    objective: Objective,
    scales: Sequence[float],
    chunk_logits: int = CHUNK_LOGITS,
) -> tuple[Tensor, Tensor]:
    """The terms summed over N positions: scaled and added up, with a gradient, and each of `objective.sums`, without.

    However large N is, it holds `chunk_logits` logits in the type of the hidden states and once more in float32 and, where there are
    several chunks, the output embedding's gradient in float32. Logits are rounded to the type of the hidden states, as a model's own
    head rounds them, and so is their gradient; all that is between is computed in at least float32.

    Args:
        hidden_ND: the decoder's output at the positions, after its last norm.
        weight_VD: the output embedding, of the same type; logits are `hidden_ND @ weight_VD.T`, nothing added and nothing capped.
        scales: a factor for each term.
        chunk_logits: a bound, but a chunk has at least one position.

    Returns:
        float (), and float (number of sums,).
    """
    loss, sums = _ChunkedLosses.apply(  # type: ignore[no-untyped-call]
        hidden_ND, weight_VD, taught, objective, scales, chunk_logits, torch.is_grad_enabled()
    )
    return loss, sums


class _ChunkedLosses(torch.autograd.Function):
    """Losses and gradients in one pass; backward only multiplies by the gradient of what became of the loss."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        taught: Taught,
        objective: Objective,
        scales: Sequence[float],
        chunk_logits: int,
        grad_enabled: bool,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)
        for_hidden, for_weight = (needed and grad_enabled for needed in ctx.needs_input_grad[:2])
        hidden_gradient = torch.empty_like(hidden_ND) if for_hidden else None
        size = _chunk_size(len(hidden_ND), chunk_logits // len(weight_VD))
        sum_type = weight_VD.dtype if size == len(hidden_ND) else wide  # a single product needs no wider sum
        weight_gradient = torch.zeros_like(weight_VD, dtype=sum_type) if for_weight else None
        factors_T = hidden_ND.new_tensor(scales, dtype=wide)
        sums = _run(hidden_ND, weight_VD, taught, objective, factors_T, size, hidden_gradient, weight_gradient)
        ctx.save_for_backward(hidden_gradient, None if weight_gradient is None else weight_gradient.to(weight_VD.dtype))
        ctx.mark_non_differentiable(sums)
        return factors_T @ sums[: len(factors_T)], sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return (*(None if gradient is None else gradient * outer for gradient in ctx.saved_tensors), *[None] * 5)


def _chunk_size(num_positions: int, most: int) -> int:
    """Positions of a chunk: the fewest chunks, of about one size."""
    num_chunks = math.ceil(num_positions / max(1, most))
    return max(1, math.ceil(num_positions / max(1, num_chunks)))


def _run(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    taught: Taught,
    objective: Objective,
    factors_T: Tensor,
    size: int,
    hidden_gradient_ND: Tensor | None,
    weight_gradient_VD: Tensor | None,
) -> Tensor:
    """`objective.sums`; the gradients, where given, are filled in and added to. A chunk has `size` positions."""
    logits_CV = hidden_ND.new_empty(size, len(weight_VD))
    wide_CV = torch.empty_like(logits_CV, dtype=factors_T.dtype) if factors_T.dtype != hidden_ND.dtype else None
    sums = factors_T.new_zeros(len(objective.sums))
    for start in range(0, len(hidden_ND), size):
        hidden_CD, chunk = hidden_ND[start : start + size], taught.part(slice(start, start + size))
        logits = torch.mm(hidden_CD, weight_VD.T, out=logits_CV[: len(hidden_CD)])
        reduced = _reduce(logits if wide_CV is None else wide_CV[: len(logits)].copy_(logits), chunk, objective)
        chunk_sums, gradients = _evaluate(reduced, chunk, objective, factors_T)
        sums += chunk_sums
        if hidden_gradient_ND is None and weight_gradient_VD is None:
            continue
        wide_gradient = _logits_gradient(reduced, gradients, chunk)
        gradient = wide_gradient if wide_CV is None else logits.copy_(wide_gradient)
        if hidden_gradient_ND is not None:
            torch.mm(gradient, weight_VD, out=hidden_gradient_ND[start : start + size])
        if weight_gradient_VD is not None:
            _add_product(weight_gradient_VD, gradient, hidden_CD)
    return sums


class _Seen(NamedTuple):
    """The few numbers of a chunk of logits that the terms are made of; what they have no gradient to, they do not see."""

    target_C1: Tensor
    """Logit of the completion's token."""
    kept_CK: Tensor
    """Logits of the tokens that the teacher kept."""
    tail_C1: Tensor
    """Log-sum-exp of the logits of all others."""
    top_CK: Tensor
    """The largest of those, in falling order; as many as a term looks at."""


@dataclass(frozen=True)
class _Reduced:
    """A chunk of logits, reduced to what is seen of it, and what leads from there back to the logits."""

    seen: _Seen
    others_CV: Tensor
    """In the memory of the logits: exp(logit - the largest of the others), 0 at the tokens that the teacher kept."""
    total_C1: Tensor
    """Their sum."""
    top_ids_CK: Tensor
    weighted_C1: Tensor | None
    """Sum of the others' exp(x) x with x = logit - the largest of them; None where no one asks for the entropy."""


def _reduce(logits_CV: Tensor, taught: Taught, objective: Objective) -> _Reduced:
    """The logits are overwritten."""
    target_C1 = logits_CV.gather(-1, taught.targets_N[:, None])
    kept_CK = logits_CV.gather(-1, taught.teacher_ids_NK)
    rows, places = (taught.teacher_logprobs_NK > float("-inf")).nonzero(as_tuple=True)
    logits_CV[rows, taught.teacher_ids_NK[rows, places]] = float("-inf")
    top_CK, top_ids_CK = logits_CV.topk(kept_CK.shape[-1] if "tail_penalty" in objective.terms else 0)
    most_C1 = logits_CV.amax(-1, keepdim=True)
    weighted_C1 = _exponentiate(logits_CV, most_C1) if objective.entropy else None
    others_CV = logits_CV if objective.entropy else logits_CV.sub_(most_C1).exp_()
    total_C1 = others_CV.sum(-1, keepdim=True)
    return _Reduced(_Seen(target_C1, kept_CK, most_C1 + total_C1.log(), top_CK), others_CV, total_C1, top_ids_CK, weighted_C1)


def _exponentiate(logits_CV: Tensor, most_C1: Tensor) -> Tensor:
    """Overwrite the logits by exp(x) with x = logit - the largest, some positions at a time; returns the sum of exp(x) x, (C, 1)."""
    weighted_C1 = torch.empty_like(most_C1)
    for start in range(0, len(logits_CV), ENTROPY_POSITIONS):
        rows = slice(start, start + ENTROPY_POSITIONS)
        shifted = (logits_CV[rows] - most_C1[rows]).clamp_(min=_NEVER)  # where exp is 0, so that 0 times -inf is
        weighted_C1[rows, 0] = torch.linalg.vecdot(torch.exp(shifted, out=logits_CV[rows]), shifted)
    return weighted_C1


def _evaluate(reduced: _Reduced, taught: Taught, objective: Objective, factors_T: Tensor) -> tuple[Tensor, _Seen]:
    """`objective.sums` over the chunk, and the gradient of the scaled terms to what is seen of it."""
    seen = _Seen(*(numbers.requires_grad_() for numbers in reduced.seen))
    teacher_logprobs_CK = taught.teacher_logprobs_NK.to(factors_T.dtype)
    with torch.enable_grad():
        student = _student(seen, teacher_logprobs_CK)
        values_TC = torch.stack([TERMS[name](student, teacher_logprobs_CK) for name in objective.terms])
        watched = []
        if objective.min_divergence is not None:
            taught_C = has_teacher(teacher_logprobs_CK)
            divergent_C = divergent(student, teacher_logprobs_CK, objective.min_divergence)
            values_TC = values_TC * (divergent_C | ~taught_C)
            watched.append((divergent_C & taught_C).sum(0, keepdim=True))
        if reduced.weighted_C1 is not None:
            watched.append(_entropy(reduced, student, teacher_logprobs_CK).sum(0, keepdim=True))
        sums_T = values_TC.sum(-1)
        gradients = torch.autograd.grad(factors_T @ sums_T, seen, materialize_grads=True)
    return torch.cat([sums_T.detach(), *watched]), _Seen(*gradients)


@torch.no_grad()
def _entropy(reduced: _Reduced, student: Student, teacher_logprobs_CK: Tensor) -> Tensor:
    """-sum q log q over the whole vocabulary, (C,): over the kept tokens, and over the others by their sums.

    Of the others, log q = x + log(q_tail / total) with x = logit - the largest of them and total = sum exp(x).
    """
    assert reduced.weighted_C1 is not None
    kept_CK = student.kept_NK.masked_fill(teacher_logprobs_CK == float("-inf"), 0)
    of_kept_C = (kept_CK.exp() * kept_CK).sum(-1)
    weighted_C, total_C = reduced.weighted_C1[:, 0], reduced.total_C1[:, 0]
    of_others_C = student.tail_N.exp() * (weighted_C / total_C + student.tail_N - total_C.log())
    return -of_kept_C - of_others_C


def _student(seen: _Seen, teacher_logprobs_CK: Tensor) -> Student:
    kept_CK = seen.kept_CK.masked_fill(teacher_logprobs_CK == float("-inf"), float("-inf"))
    norm_C1 = torch.cat([seen.tail_C1, kept_CK], -1).logsumexp(-1, keepdim=True)
    width = seen.top_CK.shape[-1]
    rank_CK = torch.arange(width, device=norm_C1.device) + (kept_CK[:, None, :] > seen.top_CK[:, :, None]).sum(-1)
    return Student(
        target_N=(seen.target_C1 - norm_C1)[:, 0],
        kept_NK=seen.kept_CK - norm_C1,
        tail_N=(seen.tail_C1 - norm_C1)[:, 0],
        confident_NK=(seen.top_CK - norm_C1).masked_fill(rank_CK >= width, float("-inf")),
    )


def _logits_gradient(reduced: _Reduced, gradients: _Seen, taught: Taught) -> Tensor:
    """(C, V), in the memory of the logits."""
    gradient_CV = reduced.others_CV.mul_(gradients.tail_C1 / reduced.total_C1)
    gradient_CV.scatter_add_(-1, taught.teacher_ids_NK, gradients.kept_CK)
    gradient_CV.scatter_add_(-1, reduced.top_ids_CK, gradients.top_CK)
    return gradient_CV.scatter_add_(-1, taught.targets_N[:, None], gradients.target_C1)


def _add_product(sum_VD: Tensor, gradient_CV: Tensor, hidden_CD: Tensor) -> None:
    """sum_VD += gradient_CV.T @ hidden_CD."""
    for start in range(0, len(sum_VD), WEIGHT_ROWS):
        rows = slice(start, start + WEIGHT_ROWS)
        sum_VD[rows] += gradient_CV[:, rows].T @ hidden_CD
