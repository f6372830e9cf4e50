"""First weights with which a tiny model copies from its prompt at once, instead of after thousands of steps.

A function call repeats values of its prompt word for word, and a transformer does that with an induction head: one head tells
every position its previous token, one in the next layer looks for the place that the current token came before (Olsson et al.,
arXiv 2209.11895). Finding the pair by gradient descent is a long plateau; setting it as the starting point is mimetic
initialization (Trockman and Kolter, arXiv 2305.09828), here of that very pair. Everything stays trainable.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor
from transformers import Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention

_PREVIOUS_TOKEN_SCORE = 5.0
"""Size of the biases that point a head at the previous token: about 9/10 of its attention."""
_MATCH_SCORE = 1.5
"""Size of the query and key weights that compare tokens."""
_COPY_SCORE = 0.1
"""Size of the output weights that pass the token found on."""


def start_copying(model: Qwen2ForCausalLM) -> None:
    """Set, in place, an induction head into the first two layers of a freshly initialized model.

    The first key-value head of each and the query heads on it take part; the others stay random.

    Raises:
        ValueError: the model has one layer.
    """
    if model.config.num_hidden_layers < 2:
        raise ValueError("an induction head takes two layers, the model has 1")
    first, second = (cast(Qwen2Attention, model.model.layers[layer].self_attn) for layer in (0, 1))
    width, head = model.config.hidden_size, first.head_dim
    queries = range(first.num_key_value_groups)
    read, written, copied = (torch.randn(head, width) / math.sqrt(width) for _ in range(3))
    with torch.no_grad():
        _look_back(first, queries, model.config.to_dict()["rope_parameters"]["rope_theta"])
        first.v_proj.weight[:head] = read
        first.o_proj.weight[:, :head] = written.T * math.sqrt(width / head) * model.config.initializer_range
        second.k_proj.weight[:head] = _MATCH_SCORE * written
        second.v_proj.weight[:head] = copied
        for query in queries:
            rows = slice(query * head, (query + 1) * head)
            second.q_proj.weight[rows] = _MATCH_SCORE * read
            second.o_proj.weight[:, rows] = _COPY_SCORE * copied.T
            if query > 0:
                first.o_proj.weight[:, rows] *= 0.1  # what one head writes is enough


def _look_back(attention: Qwen2Attention, queries: range, rope_theta: float) -> None:
    """Point query heads at the previous token: rotary embedding turns a bias into a preference for a distance.

    With key bias (1, 0) and query bias rotated by one step back in every plane, the score at distance d is the sum over the
    planes of cos(frequency x (d - 1)), largest at d = 1.
    """
    half = attention.head_dim // 2
    frequency: Tensor = rope_theta ** (-torch.arange(half) / half)
    attention.k_proj.bias[: 2 * half] = _PREVIOUS_TOKEN_SCORE * torch.cat([torch.ones(half), torch.zeros(half)])
    for query in queries:
        rows = slice(query * 2 * half, (query + 1) * 2 * half)
        attention.q_proj.bias[rows] = _PREVIOUS_TOKEN_SCORE * torch.cat([frequency.cos(), -frequency.sin()])
