"""Settings of the compressing stages: what they take and how small the result is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from supertiny.config import StageConfig

Axis = Literal["width", "depth"]
Format = Literal["awq_w4a16", "w8a8"]

AWQ_DEFAULTS = {"group_size": 128, "num_scales": 20}
"""What AWQ uses where the config leaves it out; the values of its authors (arXiv 2306.00978)."""


class CompressConfig(StageConfig):
    """What pruning and quantizing have in common: a student, and rollouts that show which of its weights matter."""

    student: str
    """Model artifact to make smaller."""
    rollouts: str = "rollouts"
    """Rollouts artifact; its prompts and completions are the calibration rows."""
    num_rows: int = Field(256, ge=1, le=65_536)
    """Calibration rows: one accepted rollout of each of so many prompts, or all there are if they are fewer."""
    max_row_tokens: int = Field(2048, ge=8, le=131_072)
    """Longer calibration rows are cut here."""


class PruneConfig(CompressConfig):
    """Remove whole feed-forward channels or whole layers, so that plain Hugging Face and vLLM load the result."""

    name: str = "prune"
    """Name of the pruned model."""
    student: str = "rl"
    """Model artifact to prune."""
    axis: Axis = "width"
    """`width`: feed-forward channels, the same number in every layer (keeps quality better). `depth`: layers (faster)."""
    target_parameters_fraction: float = Field(0.8, gt=0, lt=1)
    """Parameters to keep at most, of the student's; the largest kernel-friendly shape under it is taken."""
    tolerance_fraction: float = Field(0.1, gt=0, lt=1)
    """How far below the target that shape may be, of the student's parameters; a coarser step is an error."""


class QuantizeConfig(CompressConfig):
    """Lower the bits of every linear layer but the output head; embedding, norms and biases stay bfloat16."""

    name: str = "awq"
    """Name of the quantized model."""
    student: str = "heal"
    """Model artifact to quantize."""
    format: Format = "awq_w4a16"
    """`awq_w4a16`: 4-bit weights in groups, asymmetric, scaled by AWQ. `w8a8`: 8-bit weights by output channel (GPTQ) and 8-bit
    activations by token, scaled as they come."""
    group_size: Literal[32, 64, 128] | None = None
    """AWQ only: input channels that share a scale (128 where left out); must divide every linear layer's input width."""
    num_scales: int | None = Field(None, ge=1, le=100)
    """AWQ only: candidates tried for each layer's channel scales (20 where left out; LLM Compressor's `n_grid`)."""

    @model_validator(mode="before")
    @classmethod
    def _fill_awq(cls, values: Any) -> Any:
        """Show AWQ's defaults in the resolved config, and refuse its settings where they would do nothing."""
        if not isinstance(values, Mapping):
            return values
        if values.get("format", "awq_w4a16") == "awq_w4a16":
            given = {key: value for key, value in values.items() if value is not None or key not in AWQ_DEFAULTS}
            return {**AWQ_DEFAULTS, **given}
        without_effect = [key for key in AWQ_DEFAULTS if values.get(key) is not None]
        if without_effect:
            raise ValueError(f"{', '.join(without_effect)}: without effect on {values['format']}; only awq_w4a16 has it")
        return values
