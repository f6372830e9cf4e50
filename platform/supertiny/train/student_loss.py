"""The student as training sees it: micro batches in, losses out.

Shapes: B rows, T tokens, N completion tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from supertiny.errors import ConfigError
from supertiny.train.batching import MicroBatch
from supertiny.train.chunked import chunked_losses
from supertiny.train.losses import Taught
from supertiny.train.objective import Objective


class StudentLoss(nn.Module):
    """A causal language model whose forward pass ends in the losses and never makes a batch's logits.

    DeepSpeed is given this and not the model, for it prepares gradients and, at ZeRO 3, weights by what runs within the module that it
    was given. `model` is what gets saved.

    Raises:
        ConfigError: the model's logits are not the plain product of hidden states and output embedding.
    """

    def __init__(self, model: Any, objective: Objective) -> None:
        super().__init__()
        _check_head(model)
        self.model = model
        self.head = _LossHead(model.get_output_embeddings().weight, objective)

    def forward(self, *, batch: MicroBatch, scales: Sequence[float]) -> tuple[Tensor, Tensor]:
        """The scaled sum of the terms, which has the gradient, and the sums of `Objective.sums`."""
        decoder = self.model.get_decoder()
        hidden_BTD = decoder(input_ids=batch.tokens_BT, position_ids=batch.positions_BT, use_cache=False).last_hidden_state
        losses: tuple[Tensor, Tensor] = self.head(hidden_BTD.flatten(0, 1)[batch.predictors_N], taught=batch.taught, scales=scales)
        return losses


class _LossHead(nn.Module):
    """The output embedding, tied or not, with the losses for its output; its own module, so that ZeRO 3 gathers it when it is used.

    What has no gradient comes by name, for ZeRO 3 looks for tensors in what comes by position.
    """

    def __init__(self, weight_VD: nn.Parameter, objective: Objective) -> None:
        super().__init__()
        self.weight = weight_VD
        self._objective = objective

    def forward(self, hidden_ND: Tensor, *, taught: Taught, scales: Sequence[float]) -> tuple[Tensor, Tensor]:
        return chunked_losses(hidden_ND, self.weight, taught, self._objective, scales)


@torch.no_grad()
def check_boundaries(model: Any) -> None:
    """Refuse a model whose tokens see those of another row in the same line.

    Raises:
        ConfigError: two tokens give other hidden states behind two others than alone.
    """
    tokens_BT, positions_BT = (torch.tensor([each], device=model.device) for each in ([0, 1, 1, 0], [0, 1, 0, 1]))
    decoder = model.get_decoder()
    behind = decoder(input_ids=tokens_BT, position_ids=positions_BT, use_cache=False).last_hidden_state[:, 2:].float()
    alone = decoder(input_ids=tokens_BT[:, 2:], position_ids=positions_BT[:, 2:], use_cache=False).last_hidden_state.float()
    if not (behind - alone).norm() <= 0.01 * alone.norm():
        raise ConfigError(
            f"line_tokens: a student of the type {model.config.model_type} does not keep rows apart by their positions, so they cannot "
            "share a line; leave line_tokens out"
        )


@torch.no_grad()
def _check_head(model: Any) -> None:
    """Compare the logits of two tokens with the plain product; a cap bends small ones too little to be seen, so it is looked up."""
    tokens_BT = torch.tensor([[0, 1]], device=model.device)
    logits = model(input_ids=tokens_BT, use_cache=False).logits.float()
    hidden = model.get_decoder()(input_ids=tokens_BT, use_cache=False).last_hidden_state
    plain = (hidden @ model.get_output_embeddings().weight.T).float()
    capped = getattr(model.config, "final_logit_softcapping", None)
    if capped or not (logits - plain).norm() <= 0.01 * plain.norm():
        raise ConfigError(
            f"student of the type {model.config.model_type}: its logits are not hidden states times output embedding alone (a bias, a "
            "scale or a cap), which the losses rely on; choose another student"
        )
