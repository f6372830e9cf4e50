"""Settings of evaluating, comparing and promoting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from supertiny.config import StageConfig
from supertiny.llm.config import EngineConfig

System = Literal["student", "teacher"]
"""What answers: one greedy call in the student's format, or the task's whole teacher pipeline."""


class EvaluateConfig(StageConfig):
    """Quality, tokens, latency and cost of one model on prompts that nothing was trained on."""

    name: str
    """Name of the evaluation; `eval-` and the last part of `model` where it is left out."""
    model: str
    """Model artifact to evaluate."""
    system: System = "student"
    """`student`: one greedy call. `teacher`: the whole teacher pipeline over the model."""
    split: str = "heldout"
    """The task's prompts to use; every one needs a reference."""
    num_prompts: int = Field(1000, ge=1)
    """Prompts, drawn from the split by the hash of their id: the same ones for every model."""
    concurrency: int = Field(256, ge=1)
    """Prompts in flight while quality and throughput are measured."""
    latency_prompts: int = Field(100, ge=2)
    """The first so many of them are asked once more, one at a time, for the latency."""
    warmup_prompts: int = Field(8, ge=1)
    """Prompts answered before anything is timed."""
    max_tokens: int = Field(128, ge=1)
    """Longest completion of a student; a teacher pipeline sets its own."""
    engine: EngineConfig = EngineConfig()
    """The engine under the model."""
    num_gpus: float = Field(0, ge=0)
    """GPUs of the evaluating actor; with any, the actor ends with the evaluation and gives them back."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Nodes that it may be on: those with all of these labels (Ray's `label_selector`)."""
    start_limit_seconds: float = Field(300, gt=0)
    """Longest wait for a place in the cluster."""
    machine: str = "m7i-large"
    """The machine that this runs on, by its name in the price table."""
    prices: str | None = None
    """Price table (TOML); None takes the checkout's `cluster/prices.toml`."""

    def of(self, name: str, model: str | None = None) -> Self:
        """The same evaluation of a run's model, or of the one at `model`, as `eval-<name>`."""
        return self.model_copy(update={"name": f"eval-{name}", "model": model or name})

    def settings(self) -> dict[str, Any]:
        """As of every stage, without where it finds a place, which changes no answer."""
        return {key: value for key, value in super().settings().items() if key != "labels"}

    @model_validator(mode="before")
    @classmethod
    def _named_after_its_model(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and "name" not in values and isinstance(values.get("model"), str):
            return {**values, "name": f"eval-{values['model'].rstrip('/').rpartition('/')[2]}"}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.latency_prompts > self.num_prompts:
            raise ValueError(f"latency_prompts {self.latency_prompts} is over num_prompts {self.num_prompts}")
        if self.max_tokens >= self.engine.max_model_len:
            raise ValueError(
                f"max_tokens {self.max_tokens} leaves no room for a prompt within engine.max_model_len {self.engine.max_model_len}"
            )
        return self


class GateConfig(StageConfig):
    """May the candidate replace the baseline? Paired on the same prompts, decided by an interval, never by a point."""

    name: str = "gate"
    """Name of the gate's artifact."""
    candidate: str = "eval-w8a8"
    """Evaluation of the system that wants to be served."""
    baseline: str = "eval-teacher"
    """Evaluation of the system that it would replace."""
    margin: float = Field(0.05, gt=0, lt=1)
    """Largest loss of exact match that is acceptable, as a fraction: 0.05 is 5 points."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Of the two-sided interval of the difference."""
    min_prompts: int = Field(1000, ge=1)
    """Fewer paired prompts than this decide nothing."""


class PromoteConfig(StageConfig):
    """Mark the gate's candidate as the model to serve."""

    name: str = "promote"
    """Name of the stage; it publishes an alias and no artifact of its own."""
    alias: str = Field("student@production", pattern=r"^[a-z0-9_-]+@[a-z0-9_-]+$")
    """`name@stage` that serving looks up."""
    gate: str = "gate"
    """Gate artifact that has to have passed."""
    parity: str = "parity"
    """Parity artifact (`jobs/parity.py`) that has to have passed for the same model."""
    release: str | None = None
    """Roll back to this earlier release instead, by its name in the alias's history: its gate passed then."""
