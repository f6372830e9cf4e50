"""What a dense decoder may be cut to: shapes that stock kernels take, every layer alike, with exact parameter counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from supertiny.compress.config import Axis
from supertiny.errors import ConfigError

FEED_FORWARD_MULTIPLE = 128
"""Stock matrix kernels want input widths that 128 divides, and so do quantization groups of 128."""


@dataclass(frozen=True)
class Shape:
    """A dense decoder's sizes, in the words of its Hugging Face config."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    tie_word_embeddings: bool

    @property
    def num_parameters(self) -> int:
        """All trainable parameters, a tied embedding counted once."""
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_hidden_layers * self._layer_parameters() + self.hidden_size

    def _layer_parameters(self) -> int:
        queries = self.num_attention_heads * self.head_dim
        keys = self.num_key_value_heads * self.head_dim
        attention = self.hidden_size * (2 * queries + 2 * keys)
        extra = 2 * self.head_dim if self.model_type == "qwen3" else queries + 2 * keys  # norms of q and k, or their biases
        return attention + extra + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size


def read_shape(config: Mapping[str, Any]) -> Shape:
    """The shape in a Hugging Face `config.json`.

    Raises:
        ConfigError: an architecture whose parameters we cannot count, or a model that is quantized already.
    """
    if config["model_type"] not in ("qwen2", "qwen3"):
        raise ConfigError(f"cannot compress a {config['model_type']} model; expected qwen2 or qwen3")
    if "quantization_config" in config:
        raise ConfigError("the student is quantized already; compress the model that it was made from")
    return Shape(
        model_type=config["model_type"],
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_hidden_layers=config["num_hidden_layers"],
        num_attention_heads=config["num_attention_heads"],
        num_key_value_heads=config["num_key_value_heads"],
        head_dim=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        tie_word_embeddings=config["tie_word_embeddings"],
    )


def solve(shape: Shape, axis: Axis, target_fraction: float, tolerance_fraction: float) -> Shape:
    """The largest shape along one axis with at most `target_fraction` of the parameters.

    Raises:
        ConfigError: no shape lies within `tolerance_fraction` below the target; names the nearest ones.
    """
    candidates = _candidates(shape, axis)
    most = target_fraction * shape.num_parameters
    least = (target_fraction - tolerance_fraction) * shape.num_parameters
    fitting = [candidate for candidate in candidates if least <= candidate.num_parameters <= most]
    if fitting:
        return max(fitting, key=lambda candidate: candidate.num_parameters)
    nearest = sorted(candidates, key=lambda candidate: abs(candidate.num_parameters - most))[:2]
    reachable = " or ".join(f"{_size(candidate, axis)} ({candidate.num_parameters / shape.num_parameters:.3f})" for candidate in nearest)
    raise ConfigError(
        f"target_parameters_fraction {target_fraction} (tolerance_fraction {tolerance_fraction}) of {shape.num_parameters:,} parameters: "
        f"no {axis} reaches it; the nearest is {reachable or 'none: nothing is left to remove'}"
    )


def check_group_size(shape: Shape, group_size: int) -> None:
    """Check that weights can be quantized in groups of `group_size` input channels.

    Raises:
        ConfigError: some linear layer's input width is not a multiple of it.
    """
    widths = {
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_attention_heads x head_dim": shape.num_attention_heads * shape.head_dim,
    }
    wrong = [f"{name} {width}" for name, width in widths.items() if width % group_size]
    if wrong:
        raise ConfigError(f"group_size {group_size} does not divide the student's {' and '.join(wrong)}; take a smaller group")


def shrink_config(config: Mapping[str, Any], shape: Shape, kept_layers: Sequence[int]) -> dict[str, Any]:
    """A Hugging Face config of the new shape; what it says layer by layer is kept for the layers that stay.

    transformers checks that `layer_types` has an entry a layer, and Qwen's sliding window starts at layer `max_window_layers`.
    """
    changed: dict[str, Any] = {"intermediate_size": shape.intermediate_size, "num_hidden_layers": shape.num_hidden_layers}
    if config.get("layer_types"):
        changed["layer_types"] = [config["layer_types"][layer] for layer in kept_layers]
    if "max_window_layers" in config:
        changed["max_window_layers"] = sum(layer < config["max_window_layers"] for layer in kept_layers)
    return {**config, **changed}


def _candidates(shape: Shape, axis: Axis) -> list[Shape]:
    if axis == "width":
        widths = range(FEED_FORWARD_MULTIPLE, shape.intermediate_size, FEED_FORWARD_MULTIPLE)
        return [replace(shape, intermediate_size=width) for width in widths]
    return [replace(shape, num_hidden_layers=layers) for layers in range(1, shape.num_hidden_layers)]


def _size(shape: Shape, axis: Axis) -> str:
    return f"intermediate_size {shape.intermediate_size}" if axis == "width" else f"num_hidden_layers {shape.num_hidden_layers}"
