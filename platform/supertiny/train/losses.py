"""What distillation minimises, in nats a token.

Shapes: N completion tokens (a flat list over the rows of a batch), V vocabulary, K kept teacher tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cross_entropy(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Negative log-likelihood of each target token under the student: -log q(target).

    Args:
        logits_NV: the student's, any float type; computed in at least float32.
        targets_N: int64 token ids.

    Returns:
        float (N,), nats.
    """
    return torch.nn.functional.cross_entropy(_wide(logits_NV), targets_N, reduction="none")


def forward_kl(logits_NV: Tensor, teacher_ids_NK: Tensor, teacher_logprobs_NK: Tensor) -> Tensor:
    """Forward KL(teacher || student) at each position, over K + 1 outcomes: the kept tokens and, as one, all the others.

    sum_k p_k (log p_k - log q_k) + p_tail (log p_tail - log q_tail), with p_tail = 1 - sum_k p_k and q_tail = 1 - sum_k q_k.
    Merging outcomes never raises a KL (data-processing inequality), so this is a lower bound of the full one, 0 exactly where
    the student agrees on every kept token; without the tail's term the student could move mass off the kept tokens and the
    truncated sum would fall below 0 (the bias of top-k caches: "Sparse Logit Sampling", arXiv 2503.16870).

    Args:
        logits_NV: the student's, any float type; computed in at least float32.
        teacher_ids_NK: int64; K < V, and an id may be repeated only with log-probability -inf (padding).
        teacher_logprobs_NK: the teacher's, natural log at temperature 1, -inf for padding.

    Returns:
        float (N,), nats, never below 0 but for rounding.
    """
    student_NV = torch.log_softmax(_wide(logits_NV), dim=-1)
    p_NK = teacher_logprobs_NK.to(student_NV.dtype).exp()
    kept_N = (torch.xlogy(p_NK, p_NK) - p_NK * student_NV.gather(-1, teacher_ids_NK)).sum(-1)
    p_tail_N = (1 - p_NK.sum(-1)).clamp(min=0)
    others_NV = student_NV.scatter(-1, teacher_ids_NK, float("-inf"))
    tail_N = torch.xlogy(p_tail_N, p_tail_N) - p_tail_N * others_NV.logsumexp(-1)
    return kept_N + tail_N


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
