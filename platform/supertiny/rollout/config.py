"""Settings of the rollout stage."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from supertiny.config import Config, StageConfig
from supertiny.llm.config import EndpointConfig, EngineConfig


class LayoutConfig(Config):
    """How the work is spread over a cluster; none of it decides what comes out."""

    num_engines: int = Field(1, gt=0)
    """Actors that hold one engine each."""
    cpus_per_engine: float = Field(1.0, ge=0)
    """Logical CPUs that an engine's actor takes; Ray Data's own tasks need one more CPU of the cluster."""
    gpus_per_engine: float = Field(0.0, ge=0)
    """GPUs that an engine's actor takes; fractions share one."""
    block_rows: int = Field(64, gt=0)
    """Rollouts of one block: what is written, and never redone, at once."""
    blocks_in_flight: int = Field(5, gt=0)
    """Blocks that one engine works on at a time; times `block_rows`, keep it above the engine's `max_num_seqs`."""
    row_timeout_seconds: float = Field(120.0, gt=0)
    """A teacher pipeline that takes longer for one rollout is stopped, and the row rejected as `timed_out`."""
    no_progress_seconds: float = Field(600.0, gt=0)
    """No block written for this long ends the job with NoProgress."""
    log_every_seconds: float = Field(5.0, gt=0)
    """Between two progress lines."""


class RolloutConfig(StageConfig):
    """Run the teacher pipeline over a task's prompts and keep what the verifier accepts."""

    name: str = "rollouts"
    """Name of the artifact that this stage publishes under `run_root`."""
    teacher: str = "package://supertiny.tasks.assistant/models/teacher"
    """The model that the teacher pipeline calls."""
    engine: EngineConfig = EngineConfig()
    """Its engine."""
    endpoint: EndpointConfig | None = None
    """An endpoint that the pipeline calls instead of `teacher`; its rollouts have no teacher log-probabilities."""
    split: str = "train"
    """Which of the task's prompts."""
    limit: int | None = Field(None, gt=0)
    """Only this many prompts, the first ones; None takes all."""
    group_size: int = Field(2, gt=0)
    """Completions of one prompt."""
    min_agreement: float | None = Field(None, gt=0, le=1)
    """Smallest share of a prompt's `group_size` completions that must be accepted and make the same calls, else the whole group is
    rejected as `no_agreement`; None asks for none. Where nobody knows the right calls, the commonest ones become the prompt's
    reference either way, and completions that make others are rejected as `minority`."""
    drop_duplicates: bool = False
    """Reject a completion whose text an earlier one of its prompt already has. A nearly greedy teacher loses most rows by it."""
    layout: LayoutConfig = LayoutConfig()
    """How the work is spread over the cluster."""

    @model_validator(mode="after")
    def _one_teacher(self) -> RolloutConfig:
        idle = {"teacher", "engine"} & self.model_fields_set
        if self.endpoint is not None and idle:
            raise ValueError(f"with an endpoint, {' and '.join(sorted(idle))} would have no effect; leave it out")
        return self

    def settings(self) -> dict[str, Any]:
        """The fields that decide the result: the layout does not, so that a run may go on with another one."""
        return {key: value for key, value in super().settings().items() if key != "layout"}
