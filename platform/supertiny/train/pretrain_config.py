"""Settings of pretraining."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from supertiny.config import Config, StageConfig
from supertiny.tracking import TrackerName


class ModelSize(Config):
    """Shape of a Qwen2 model with a tied embedding."""

    vocabulary_size: int = Field(1024, ge=384, multiple_of=128)
    """Tokens that the tokenizer may have, and rows of the embedding."""
    hidden_size: int = Field(256, ge=64, multiple_of=64)
    """Model width; one attention head for every 64 of it."""
    feed_forward_size: int = Field(768, ge=64, multiple_of=64)
    """Width of the feed-forward layers (`intermediate_size`)."""
    num_layers: int = Field(4, ge=1, le=64)
    """Transformer blocks."""
    num_key_value_heads: int = Field(2, ge=1)
    """Key-value heads of 64; divides the number of heads."""

    def sizes(self) -> dict[str, Any]:
        """In the words of a Hugging Face config."""
        return {
            "vocab_size": self.vocabulary_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.feed_forward_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.hidden_size // 64,
            "num_key_value_heads": self.num_key_value_heads,
            "tie_word_embeddings": True,
        }

    @model_validator(mode="after")
    def _whole_groups(self) -> ModelSize:
        heads = self.hidden_size // 64
        if heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads {self.num_key_value_heads} does not divide the {heads} heads of hidden_size {self.hidden_size}"
            )
        return self


class PretrainConfig(StageConfig):
    """Make a tiny model from nothing, out of a task's own examples."""

    role: Literal["teacher", "base"]
    """Which of the task's examples: the teacher's show every step of its pipeline, the base's a little of the student's format."""
    tokenizer: str | None = None
    """Model artifact whose tokenizer is taken; none trains one. Teacher and students must share it."""
    model: ModelSize = ModelSize()
    """The model's shape."""
    steps: int = Field(3000, ge=1)
    """Optimizer updates."""
    batch: int = Field(64, ge=1)
    """Examples a step."""
    learning_rate: float = Field(2e-3, gt=0, le=1)
    """Peak learning rate, of Muon and AdamW alike."""
    warmup_steps: int = Field(100, ge=1)
    """Steps in which the learning rate rises from 0 to its peak; after them it falls along a cosine to 0."""
    prompt_loss_weight: float = Field(0.05, ge=0, le=1)
    """Weight of a prompt's tokens in the loss; an answer's tokens have 1."""
    max_tokens: int = Field(160, ge=16)
    """Longest example in tokens; longer ones are left out."""
    tokenizer_examples: int = Field(20_000, ge=1)
    """Examples that a new tokenizer is trained on."""
    tokenizer_texts: tuple[str, ...] = ()
    """Text files that a new tokenizer is trained on besides, in UTF-8: paths, or `package://module/file`. With others than the task's own
    words it has tokens that the task does not need, as a large model's has. An artifact's key knows their names and not what they say."""
    log_every_steps: int = Field(50, ge=1)
    """Steps between progress lines and between lines of the metrics; each gives the mean loss since the last."""
    trackers: tuple[TrackerName, ...] = ("tensorboard",)
    """What they go to beside `metrics.jsonl`; `mlflow` and `wandb` need their extra installed."""
    seed: int = Field(0, ge=0)
    """Of the examples and of the first weights."""

    @model_validator(mode="after")
    def _texts_have_effect(self) -> PretrainConfig:
        if self.tokenizer is not None and self.tokenizer_texts:
            raise ValueError("tokenizer_texts: without effect where the tokenizer is taken from a model")
        return self

    def settings(self) -> dict[str, Any]:
        """As of every stage, without the trackers, which change no result, and without `tokenizer_texts` where there are none."""
        left_out = {"trackers", *(() if self.tokenizer_texts else ("tokenizer_texts",))}
        return {key: value for key, value in super().settings().items() if key not in left_out}
