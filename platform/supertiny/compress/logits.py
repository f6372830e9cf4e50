"""A model's logits over calibration rows, some positions at a time: those of a long row never exist together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from supertiny.compress.calibration import MAX_BATCH_TOKENS, Batch


def logits_by_part(model: Any, batch: Batch) -> Iterator[torch.Tensor]:
    """Float (N, V): the logits of `MAX_BATCH_TOKENS` positions after another, row after row; the last part has what is left."""
    for part_ND in _states(model, batch).split(MAX_BATCH_TOKENS):
        yield model.lm_head(part_ND)


def _states(model: Any, batch: Batch) -> Any:
    """(N, D): what the head reads. The model is called and not its decoder, since quantized weights are unpacked at its first call."""
    outputs: list[Any] = []
    handle = model.model.register_forward_hook(lambda _, __, output: outputs.append(output))
    model(input_ids=torch.tensor(batch), use_cache=False, logits_to_keep=1)
    handle.remove()
    return outputs[0].last_hidden_state.flatten(0, 1)
