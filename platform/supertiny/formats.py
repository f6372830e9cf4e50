"""Formats of quantized weights: their names, and the grid of values that each can hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from supertiny.errors import ConfigError

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationScheme

Format = Literal["awq_w4a16", "gptq_w4a16", "w8a8", "fp8_dynamic"]
FORMAT_DEFAULTS: dict[str, dict[str, int]] = {
    "awq_w4a16": {"group_size": 128, "num_scales": 20},
    "gptq_w4a16": {"group_size": 128},
}
"""What a format uses where the config leaves it out; the values of its authors (AWQ: arXiv 2306.00978, GPTQ: 2210.17323)."""
FORMAT_NAMES: dict[str, str] = {"awq_w4a16": "awq", "gptq_w4a16": "gptq", "w8a8": "w8a8", "fp8_dynamic": "fp8"}
"""What a model in a format is named where nothing else is said."""
GPU_FORMATS: tuple[Format, ...] = ("fp8_dynamic",)
"""Formats that no kernel on a CPU runs."""
NOT_QUANTIZED = ["lm_head"]
"""The output head, which shares its weight with the embedding in a tied model."""
_SCHEMES = {"w8a8": "W8A8", "fp8_dynamic": "FP8_DYNAMIC"}


def check_device(form: Format, has_gpu: bool) -> None:
    """Refuse a format that could not be measured, nor its export proven, where it is made; raises ConfigError."""
    if form in GPU_FORMATS and not has_gpu:
        raise ConfigError(f"format {form} is for GPUs and this machine has none; take w8a8, awq_w4a16 or gptq_w4a16, or run it on a GPU")


def scheme_of(form: Format, group_size: int | None) -> QuantizationScheme:
    """What a format does to a linear layer's weight and, where it has fewer bits for them, inputs; in compressed-tensors' words."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, preset_name_to_scheme

    if form in _SCHEMES:
        return preset_name_to_scheme(_SCHEMES[form], ["Linear"])
    symmetric = form == "gptq_w4a16"
    weights = QuantizationArgs(num_bits=4, type="int", symmetric=symmetric, strategy="group", group_size=group_size)
    return QuantizationScheme(targets=["Linear"], weights=weights)
