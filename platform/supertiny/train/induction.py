"""First weights with which a tiny model copies from its prompt early, instead of after thousands of steps.

A call repeats values of its prompt word for word. A transformer does that with an induction head: heads of one layer tell every
position which tokens came before it, and a head of the next looks for the place where the same ones came before (Olsson et al.,
arXiv 2209.11895). Gradient descent finds them after a long plateau; to begin with them is mimetic initialization (Trockman and
Kolter, arXiv 2305.09828). Two tokens are matched, since every second one is a space. Everything stays trainable.
"""

from __future__ import annotations

import math
from typing import Any

import torch

LOOK_BACK_SCORE = 5.0
"""Size of the biases that point a head at an earlier token; it gets about 9/10 of the attention."""
MATCH_SCORE = 1.5
"""Size of the query and key weights that compare tokens."""
COPY_SCORE = 0.1
"""Size of the output weights that pass on the token found."""


def start_copying(model: Any) -> None:
    """Set an induction head into the first two layers of a new Qwen2 model, in place.

    The first key-value head of both layers takes part, and all query heads on it in the second; in the first, the query heads look
    back one token, two, and so on.

    Raises:
        ValueError: there are fewer than two layers, or fewer than two query heads a key-value head.
    """
    config = model.config
    per_group = config.num_attention_heads // config.num_key_value_heads
    if config.num_hidden_layers < 2 or per_group < 2:
        raise ValueError("an induction head that matches two tokens takes two layers and two query heads a key-value head")
    first, second = (model.model.layers[layer].self_attn for layer in (0, 1))
    width, head = config.hidden_size, first.head_dim
    read, one_back, two_back, copied = (torch.randn(head, width) / math.sqrt(width) for _ in range(4))
    turned = torch.linalg.qr(torch.randn(head, head)).Q  # keeps the two comparisons apart
    output_scale = math.sqrt(width / head) * config.initializer_range
    with torch.no_grad():
        _look_back(first, per_group, config.rope_parameters["rope_theta"])
        first.v_proj.weight[:head] = read
        first.o_proj.weight[:, :head] = one_back.T * output_scale
        first.o_proj.weight[:, head : 2 * head] = two_back.T * output_scale
        second.k_proj.weight[:head] = MATCH_SCORE * (one_back + turned @ two_back)
        second.q_proj.weight[: per_group * head] = MATCH_SCORE * (read + turned @ one_back).repeat(per_group, 1)
        second.v_proj.weight[:head] = copied
        second.o_proj.weight[:, : per_group * head] = COPY_SCORE * copied.T.repeat(1, per_group)


def _look_back(attention: Any, num_heads: int, rope_theta: float) -> None:
    """Point query head h at the token h + 1 places back.

    Rotary embedding turns biases into a preference for a distance: with key bias (1, 0) and query bias turned back by D steps in
    every plane, the score at distance d is the sum of cos(frequency x (d - D)), largest at d = D.
    """
    half = attention.head_dim // 2
    frequencies = rope_theta ** (-torch.arange(half) / half)
    attention.k_proj.bias[: 2 * half] = LOOK_BACK_SCORE * torch.cat([torch.ones(half), torch.zeros(half)])
    for query_head in range(num_heads):
        angles = (query_head + 1) * frequencies
        rows = slice(query_head * 2 * half, (query_head + 1) * 2 * half)
        attention.q_proj.bias[rows] = LOOK_BACK_SCORE * torch.cat([angles.cos(), -angles.sin()])
