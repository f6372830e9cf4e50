"""Divergences that need the teacher's whole distribution, in nats a token; a cache of its top-k is not enough.

Shapes: N positions, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def reverse_kl(student_logits_NV: Tensor, teacher_logits_NV: Tensor) -> Tensor:
    """Reverse KL(student || teacher) at each position: sum_v q_v (log q_v - log p_v), q the student's, p the teacher's.

    It seeks the teacher's modes (MiniLLM, arXiv 2306.08543). Over a truncated top-k it has no bound on what lies outside, and
    training on it collapsed (STAR, arXiv 2602.03022): hence the whole distribution.

    Args:
        student_logits_NV: any float type; computed in at least float32.
        teacher_logits_NV: over the same vocabulary.

    Returns:
        float (N,), never below 0 but for rounding.
    """
    return _kl(_logprobs(student_logits_NV), _logprobs(teacher_logits_NV))


def generalized_jsd(student_logits_NV: Tensor, teacher_logits_NV: Tensor, jsd_beta: float) -> Tensor:
    """Generalised Jensen-Shannon divergence at each position: beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q.

    p is the teacher's, q the student's (GKD, arXiv 2306.13649; TRL's `beta`). Divided by beta it tends to the forward
    KL for beta -> 0, divided by 1 - beta to the reverse KL for beta -> 1.

    Args:
        student_logits_NV: any float type; computed in at least float32.
        teacher_logits_NV: over the same vocabulary.
        jsd_beta: above 0 and below 1.

    Returns:
        float (N,), at most ln 2.

    Raises:
        ValueError: jsd_beta is 0 or 1, where the divergence is 0 everywhere, or outside.
    """
    if not 0 < jsd_beta < 1:
        raise ValueError(f"jsd_beta {jsd_beta} is not between 0 and 1; the limits are forward_kl and reverse_kl")
    q_NV, p_NV = _logprobs(student_logits_NV), _logprobs(teacher_logits_NV)
    mixture_NV = torch.logaddexp(p_NV + math.log(jsd_beta), q_NV + math.log(1 - jsd_beta))
    return jsd_beta * _kl(p_NV, mixture_NV) + (1 - jsd_beta) * _kl(q_NV, mixture_NV)


def _kl(one_NV: Tensor, other_NV: Tensor) -> Tensor:
    """KL(one || other) of log-probabilities."""
    return (one_NV.exp() * (one_NV - other_NV)).sum(-1)


def _logprobs(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)
