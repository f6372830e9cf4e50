"""Settings of taking in a model from elsewhere."""

from __future__ import annotations

from pydantic import Field

from supertiny.config import StageConfig


class AdoptConfig(StageConfig):
    """Make an artifact of a model from elsewhere, so that stages can start from it."""

    source: str
    """Its folder, in Hugging Face's layout: config.json, a fast tokenizer, safetensors. Not a hub's name: nothing is downloaded."""
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """Hash over the names and contents of its files, which the model must have; None takes it as it is and writes its hash down."""
