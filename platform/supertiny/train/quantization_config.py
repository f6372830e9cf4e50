"""Settings of training through the rounding of a quantized format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import model_validator

from supertiny.config import Config
from supertiny.formats import FORMAT_DEFAULTS, Format


class QuantizationAwareSettings(Config):
    """The format whose rounding a student is trained through."""

    format: Format
    """As of `QuantizeConfig`; quantize with it and `rounding = "nearest"` afterwards: others land beside what was trained for."""
    group_size: Literal[32, 64, 128] | None = None
    """4-bit formats only: input channels that share a scale (128 where left out)."""

    @model_validator(mode="before")
    @classmethod
    def _fill_group_size(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or values.get("group_size") is not None:
            return values
        return {**values, "group_size": FORMAT_DEFAULTS.get(str(values.get("format")), {}).get("group_size")}

    @model_validator(mode="after")
    def _groups_of_its_format(self) -> QuantizationAwareSettings:
        if self.group_size is not None and self.format not in FORMAT_DEFAULTS:
            raise ValueError(f"group_size: without effect on {self.format}; only {' and '.join(FORMAT_DEFAULTS)} have it")
        return self
