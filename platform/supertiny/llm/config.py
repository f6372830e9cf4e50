"""Settings of the engines behind `Llm`."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from supertiny.config import Config
from supertiny.records import Usage


class EngineConfig(Config):
    """How vLLM runs one model inside the calling process."""

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "bfloat16"
    """Type of weights and activations; `auto` takes the checkpoint's (vLLM's `dtype`)."""
    max_model_len: int = Field(512, ge=16)
    """Prompt and completion together, tokens."""
    max_num_seqs: int = Field(256, gt=0)
    """Completions decoded together; keep more requests than this in flight."""
    max_num_batched_tokens: int = Field(8192, ge=16)
    """Tokens of one engine step, prefill included."""
    kv_cache_gib: float = Field(1.0, gt=0)
    """Memory for keys and values, GiB a worker (vLLM's `kv_cache_memory_bytes`)."""
    enable_prefix_caching: bool = False
    """Keep the keys and values of prompts for later prompts that start alike; only whole blocks of `block_size` tokens are kept."""
    block_size: int = Field(32, ge=16)
    """Tokens of one block of keys and values; on a CPU a multiple of 32."""
    tensor_parallel_size: int = Field(1, gt=0)
    """Workers that every layer is split over, each a GPU, or on a CPU a process; it has to divide the model's attention heads."""
    pipeline_parallel_size: int = Field(1, gt=0)
    """Groups of such workers, each with some of the layers. All workers of an engine are on one node."""
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1)
    """Share of each GPU's memory that must be free at the start (vLLM's own word); None leaves vLLM's 0.92, so set it where engines share a
    GPU. How much is taken depends on the weights and `kv_cache_gib`. Refused on a CPU."""
    adapter: str | None = None
    """Folder of a LoRA adapter, as PEFT writes it, that every request goes through. An artifact's key knows its path and not its files."""
    num_threads: int | None = Field(None, gt=0)
    """OpenMP threads of the engine on a CPU; None leaves the process's own number. Refused where there is a GPU."""
    enforce_eager: bool = True
    """Run as written instead of compiling; starts faster, and the faster of the two for models of a few million parameters."""
    no_progress_seconds: float = Field(300.0, gt=0)
    """Requests waiting and none finished for this long: the engine is given up with NoProgress."""

    @property
    def num_workers(self) -> int:
        """Devices, or on a CPU processes, that one engine takes."""
        return self.tensor_parallel_size * self.pipeline_parallel_size


class ScriptedConfig(Config):
    """A fake engine that answers the same to everything, to measure what is around an engine."""

    answer: str = "I cannot do that."
    """Its answer."""
    delay_seconds: float = Field(0.0, ge=0)
    """How long a call takes."""
    max_num_seqs: int = Field(256, gt=0)
    """Calls under way together, others wait: an engine answers at most `max_num_seqs / delay_seconds` of them a second."""


class TokenPriceConfig(Config):
    """What an endpoint takes for tokens."""

    prompt_usd: float = Field(ge=0)
    """Dollars for a million prompt tokens."""
    cached_usd: float | None = Field(None, ge=0)
    """Dollars for a million of those that its cache answered; None takes `prompt_usd`."""
    completion_usd: float = Field(ge=0)
    """Dollars for a million completion tokens."""

    def usd(self, usage: Usage) -> float:
        """Dollars for what some calls used."""
        cached_usd = self.prompt_usd if self.cached_usd is None else self.cached_usd
        fresh = usage.prompt_tokens - usage.cached_tokens
        return (fresh * self.prompt_usd + usage.cached_tokens * cached_usd + usage.completion_tokens * self.completion_usd) / 1_000_000


class EndpointConfig(Config):
    """An OpenAI-compatible chat endpoint, ours or someone else's."""

    base_url: str = Field(pattern=r"^https?://")
    """Up to and without `/chat/completions`, such as `https://api.example.com/v1`."""
    model: str
    """The endpoint's name of the model."""
    api_key_env: str | None = None
    """Environment variable that holds the key; None sends none. The key itself never stands in a config."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What it calls the longest answer; OpenAI's own newer models refuse every request that has the former."""
    timeout_seconds: float = Field(50.0, gt=0)
    """Of one try, from its first byte to the last of the answer."""
    max_retries: int = Field(5, ge=0)
    """Further tries after 403, 408, 409, 425, 429, a 5xx, a broken connection or an answer that was cut short."""
    first_backoff_seconds: float = Field(0.5, gt=0)
    """Pause before the first retry; it doubles with each, up to a minute, and is drawn between half of that and all of it."""
    max_concurrency: int = Field(32, gt=0)
    """Requests under way at once, of each of a rollout's engines; its judge counts for itself."""
    price: TokenPriceConfig | None = None
    """What it takes for tokens; None where nobody knows, and then a ledger has no dollars for it. It decides nothing of what comes out."""


_CONDUCT = frozenset(EndpointConfig.model_fields) - {"base_url", "model", "max_tokens_field"} | {
    "enable_prefix_caching",
    "gpu_memory_utilization",
    "kv_cache_gib",
    "max_num_batched_tokens",
    "max_num_seqs",
    "no_progress_seconds",
    "num_threads",
    "pipeline_parallel_size",
    "tensor_parallel_size",
}


def drop_conduct(section: dict[str, Any] | None) -> None:
    """Take out of an engine's or endpoint's settings how it is run: its key, pace, patience, price, memory and devices.

    What was stopped for one of these can so go on with another.
    """
    for name in _CONDUCT & set(section or ()):
        del section[name]  # type: ignore[union-attr]


class RubricConfig(Config):
    """How a model grades a completion."""

    rubric: str = Field(
        "The calls do all that the user asked for, and nothing else. Every argument is what the user said, or follows from it. "
        "Where no tool can do it, the answer says so and calls none.",
        min_length=1,
    )
    """What a perfect answer is like, for the judge to read."""
    max_score: int = Field(5, gt=1)
    """Best score of the scale, which begins at 1."""
    votes: int = Field(1, ge=1, le=16)
    """Answers drawn a completion. Where not more than half of them have a score of the scale, there is none."""
    temperature: float = Field(0.0, ge=0)
    """At which they are drawn; several votes at 0 would all be the same."""
    max_tokens: int = Field(256, gt=0)
    """Longest answer."""

    @model_validator(mode="after")
    def _votes_differ(self) -> Self:
        if self.votes > 1 and self.temperature == 0:
            raise ValueError(f"{self.votes} votes at temperature 0 would all be the same; raise the temperature, or ask for one")
        return self
