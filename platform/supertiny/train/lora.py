"""Low-rank additions to a student's weights, by peft: only they are trained (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from supertiny.train.config import LoraSettings

ADAPTER = "default"
"""peft's name for the only adapter there is."""


def lora_config(settings: LoraSettings) -> Any:
    """peft's words for our settings: additions to every linear layer but the output embedding."""
    from peft import LoraConfig

    return LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules="all-linear", task_type="CAUSAL_LM")


def add_lora(model: Any, settings: LoraSettings | None) -> Any:
    """The model with additions set into its layers, in place, all else frozen; the model itself without settings."""
    if settings is not None:
        from peft import get_peft_model

        get_peft_model(model, lora_config(settings), autocast_adapter_dtype=False)
    return model


def merged_weights(model: Any) -> dict[str, Tensor]:
    """A plain model's weights by name, the additions added up in float32; those that are shared stay shared by name."""
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "get_delta_weight")}
    weights = {name.replace(".base_layer.", "."): tensor.detach() for name, tensor in model.state_dict().items() if ".lora_" not in name}
    with torch.no_grad():
        for name, layer in layers.items():
            weights[f"{name}.weight"] = layer.get_base_layer().weight.float() + layer.get_delta_weight(ADAPTER).float()
    return weights
