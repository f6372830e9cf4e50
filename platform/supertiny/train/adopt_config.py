"""Settings of taking in a model from elsewhere."""

from __future__ import annotations

from pydantic import Field

from supertiny.config import StageConfig


class AdoptConfig(StageConfig):
    """Make an artifact of a model from elsewhere, so that stages can start from it."""

    source: str
    """Its folder, in Hugging Face's layout: config.json, a fast tokenizer, safetensors. Not a hub's name: nothing is downloaded."""
    thinking: bool | None = None
    """Whether the model thinks before it answers, where its chat template can be told (Qwen3's `enable_thinking`): the adopted template
    says so from then on, in rollouts, training and serving alike. None leaves the template as it is."""
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """Hash over the names and contents of its files, which the model must have; None takes it as it is and writes its hash down."""
