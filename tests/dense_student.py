"""What the terms see of a student, made the plain way: from all its logits at once, by autograd's own rules."""

from __future__ import annotations

import torch
from torch import Tensor

from supertiny.train.losses import Student, Taught


def look(logits_NV: Tensor, taught: Taught) -> Student:
    """The student's log-probabilities at the tokens that matter, for logits of float32 or float64."""
    logprobs_NV = torch.log_softmax(logits_NV, -1)
    kept_NV = torch.zeros_like(logprobs_NV, dtype=torch.bool)
    for row, (ids, logprobs) in enumerate(zip(taught.teacher_ids_NK, taught.teacher_logprobs_NK, strict=True)):
        kept_NV[row, ids[logprobs > float("-inf")]] = True
    confident_NK, ids_NK = logprobs_NV.topk(taught.teacher_ids_NK.shape[-1])
    return Student(
        target_N=logprobs_NV.gather(-1, taught.targets_N[:, None])[:, 0],
        kept_NK=logprobs_NV.gather(-1, taught.teacher_ids_NK),
        tail_N=logprobs_NV.masked_fill(kept_NV, float("-inf")).logsumexp(-1),
        confident_NK=confident_NK.masked_fill(kept_NV.gather(-1, ids_NK), float("-inf")),
    )
