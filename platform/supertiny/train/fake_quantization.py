"""Training through the rounding of the format that the student will be served in (quantization-aware training, arXiv 1712.05877).

The weights stay in full precision and are what is trained and saved; every linear layer but the head computes with them, and with its
inputs where the format rounds those, as the quantized file will have them. The gradient passes the rounding unchanged (straight-through
estimator, arXiv 1308.3432).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams
from torch import Tensor, nn
from torch.nn import functional

from supertiny.errors import ConfigError
from supertiny.formats import NOT_QUANTIZED, scheme_of
from supertiny.train.quantization_config import QuantizationAwareSettings


class RoundedLinear(nn.Linear):
    """A linear layer that computes as it will when it is quantized; a layer is made one by changing its class."""

    scheme: QuantizationScheme

    def forward(self, input: Tensor) -> Tensor:
        """Of (…, K) inputs, (…, N) outputs."""
        taken = input if self.scheme.input_activations is None else straight_through(input, self.scheme.input_activations)
        assert self.scheme.weights is not None
        return functional.linear(taken, straight_through(self.weight, self.scheme.weights), self.bias)


def straight_through(values: Tensor, grid: QuantizationArgs) -> Tensor:
    """The nearest values that the grid holds; their gradient is the values' own."""
    with torch.no_grad():
        moved = rounded(values, grid) - values
    return values + moved


def rounded(values: Tensor, grid: QuantizationArgs) -> Tensor:
    """Values (…, K) rounded as LLM Compressor rounds to nearest: a scale by row, or by group of a row."""
    rows = values.reshape(*values.shape[:-1], -1, grid.group_size or values.shape[-1])
    scale, zero_point = calculate_qparams(rows.amin(-1), rows.amax(-1), grid)
    result: Tensor = fake_quantize(values, scale, zero_point, grid)
    return result.to(values.dtype)


def round_layers(model: nn.Module, settings: QuantizationAwareSettings | None) -> None:
    """Make the model's linear layers compute as they will in the format, in place; nothing without settings."""
    if settings is None:
        return
    scheme = scheme_of(settings.format, settings.group_size)
    for layer in _linear_layers(model).values():
        layer.__class__ = RoundedLinear
        layer.scheme = scheme


def check_groups(student: Path, settings: QuantizationAwareSettings | None) -> None:
    """Refuse groups that do not fit the student's layers, before it is loaded; raises ConfigError."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if settings is None or settings.group_size is None:
        return
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(student))  # type: ignore[no-untyped-call]
    for name, layer in _linear_layers(model).items():
        if layer.in_features % settings.group_size:
            raise ConfigError(
                f"quantization_aware.group_size {settings.group_size} does not divide the {layer.in_features} inputs of {name} in "
                f"{student}; take 32 or 64, or format w8a8"
            )


def _linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    return {name: layer for name, layer in layers.items() if name.rpartition(".")[2] not in NOT_QUANTIZED}
