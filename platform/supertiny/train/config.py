"""Settings of the stages that change a student's weights."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from supertiny.config import StageConfig


class TrainConfig(StageConfig):
    """What distillation and reinforcement learning share: a student, its rollouts, workers and an optimizer."""

    student: str
    """Model to start from."""
    rollouts: str = "rollouts"
    """Rollout artifact to learn from."""
    num_workers: int = Field(2, ge=1, le=1024)
    """Training processes, one logical CPU each."""
    threads_per_worker: int = Field(1, ge=1, le=256)
    """Threads that one worker computes with (torch's intra-op threads)."""
    batch: int = Field(32, ge=1)
    """Sequences a step, over all workers."""
    micro_batch: int = Field(8, ge=1)
    """Sequences a worker takes through the model at once."""
    attention: Literal["eager", "sdpa"] = "eager"
    """How attention is computed (transformers' `attn_implementation`): on a CPU eager trains 1.4 times as fast up to some hundred
    tokens a row; above, sdpa needs less memory."""
    learning_rate: float = Field(1e-5, gt=0, le=1)
    """Peak learning rate of AdamW."""
    warmup_fraction: float = Field(0.05, ge=0, lt=1)
    """Share of the steps in which the learning rate rises from 0 to its peak."""
    weight_decay: float = Field(0.0, ge=0, le=1)
    """AdamW's decoupled weight decay."""
    gradient_clip: float = Field(1.0, gt=0)
    """Largest norm of a step's gradient (DeepSpeed's `gradient_clipping`)."""
    checkpoint_every_steps: int = Field(50, ge=1)
    """Steps between checkpoints; a killed run goes on from the last one."""
    max_failures: int = Field(1, ge=0, le=100)
    """Lost workers to recover from within one run, each time from the last checkpoint."""
    stall_seconds: int = Field(300, ge=10, le=7200)
    """Longest wait of one worker for another (the process group's time-out)."""
    log_every_steps: int = Field(10, ge=1)
    """Steps between progress lines; the metrics file has every step."""
    seed: int = Field(0, ge=0)
    """Order of the rows, and of whatever is drawn."""

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> TrainConfig:
        share = self.num_workers * self.micro_batch
        if self.batch % share:
            raise ValueError(
                f"batch {self.batch} is not a multiple of num_workers x micro_batch = {self.num_workers} x {self.micro_batch} = {share}"
            )
        return self


class DistillConfig(TrainConfig):
    """Teach the student the accepted completions and the teacher's token distribution over them."""

    name: str = "distill"
    """Name of the artifact that this stage publishes under `run_root`."""
    student: str = "package://supertiny.tasks.assistant/models/base"
    """Model to start from."""
    learning_rate: float = Field(5e-4, gt=0, le=1)
    """Peak learning rate of AdamW; a model of 0.5B wants about 1e-5."""
    final_learning_rate_fraction: float = Field(0.1, ge=0, le=1)
    """The learning rate falls along a cosine to this share of its peak."""
    epochs: float = Field(3.0, gt=0, le=1000)
    """Times that every row is seen; a fraction stops in the middle of a pass."""
    max_tokens: int = Field(1024, ge=2)
    """Longest row, prompt and completion together, in tokens; longer rows are left out and counted."""
    cross_entropy_weight: float = Field(1.0, ge=0)
    """Weight of the cross-entropy on the completion's tokens."""
    forward_kl_weight: float = Field(1.0, ge=0)
    """Weight of the forward KL to the teacher's top-k tokens; rows without them contribute cross-entropy alone."""
    zero_stage: Literal[1, 2, 3] = 1
    """DeepSpeed ZeRO: what the workers share out; 1 optimizer state, 2 gradients too, 3 weights too."""

    @model_validator(mode="after")
    def _some_loss(self) -> DistillConfig:
        if self.cross_entropy_weight == 0 and self.forward_kl_weight == 0:
            raise ValueError("cross_entropy_weight and forward_kl_weight are both 0: nothing would be learnt")
        return self


class RlConfig(TrainConfig):
    """Raise the verifier's reward of the student's own completions (GRPO)."""

    name: str = "rl"
    """Name of the artifact that this stage publishes under `run_root`."""
    student: str = "distill"
    """Model to start from; its frozen copy is the reference."""
    steps: int = Field(30, ge=1)
    """Optimizer updates."""
    group_size: int = Field(8, ge=2, le=1024)
    """Completions drawn for each prompt (TRL's `num_generations`)."""
    temperature: float = Field(1.0, gt=0, le=10)
    """Temperature of the completions drawn."""
    max_completion_tokens: int = Field(96, ge=1)
    """Longest completion, in tokens; a longer one is cut and judged as it stands."""
    kl_coef: float = Field(1e-3, ge=0)
    """Weight of the reverse KL to the reference (TRL's `beta`); 0 keeps no reference in memory."""
    zero_stage: Literal[1, 2] | None = None
    """DeepSpeed ZeRO stage; None trains with plain data parallelism."""

    @model_validator(mode="after")
    def _whole_groups(self) -> RlConfig:
        if self.batch % self.group_size:
            raise ValueError(f"batch {self.batch} is not a multiple of group_size {self.group_size}")
        return self
