"""A model's logits over calibration rows, some positions at a time: those of a long row never exist together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from supertiny.compress.calibration import MAX_BATCH_TOKENS, Batch


def logits_by_part(model: Any, batch: Batch) -> Iterator[torch.Tensor]:
    """Float (N, V): the logits of `MAX_BATCH_TOKENS` positions after another, row after row; the last part has what is left."""
    states_ND = model.model(input_ids=torch.tensor(batch), use_cache=False).last_hidden_state.flatten(0, 1)
    for part_ND in states_ND.split(MAX_BATCH_TOKENS):
        yield model.lm_head(part_ND)
