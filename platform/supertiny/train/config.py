"""Settings of the stages that change a student's weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from supertiny.config import Config, StageConfig
from supertiny.tracking import TrackerName

WHOLE_TEACHER = ("reverse_kl", "jsd")
"""Loss terms that need the teacher's distribution over the whole vocabulary."""


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
    trackers: tuple[TrackerName, ...] = ("tensorboard",)
    """What every step's metrics go to beside `metrics.jsonl`; `mlflow` and `wandb` need their extra installed."""
    seed: int = Field(0, ge=0)
    """Order of the rows, and of whatever is drawn."""

    def settings(self) -> dict[str, Any]:
        """As of every stage, without the trackers, which change no result."""
        return {key: value for key, value in super().settings().items() if key != "trackers"}

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> TrainConfig:
        share = self.num_workers * self.micro_batch
        if self.batch % share:
            raise ValueError(
                f"batch {self.batch} is not a multiple of num_workers x micro_batch = {self.num_workers} x {self.micro_batch} = {share}"
            )
        return self


class LossWeights(Config):
    """The terms of a distillation's loss: each that is named has this weight, the others are not computed."""

    cross_entropy: float | None = Field(None, gt=0)
    """Cross-entropy on the completion's tokens; alone, it is rejection-sampling fine-tuning."""
    forward_kl: float | None = Field(None, gt=0)
    """Forward KL, teacher to student, over the teacher's top-k tokens and, as one more outcome, all others."""
    tail_penalty: float | None = Field(None, gt=0)
    """Probability of those of the student's k likeliest tokens that the teacher did not keep (STAR: weight 10 beside the forward KL)."""
    reverse_kl: float | None = Field(None, gt=0)
    """Reverse KL, student to teacher, over the whole vocabulary; not from rollouts, which keep the top-k alone."""
    jsd: float | None = Field(None, gt=0)
    """Generalised Jensen-Shannon divergence over the whole vocabulary; not from rollouts, likewise."""

    def weights(self) -> dict[str, float]:
        """The terms that are used."""
        return {name: weight for name, weight in self if weight is not None}

    @model_validator(mode="before")
    @classmethod
    def _known_names(cls, values: Any) -> Any:
        unknown = [str(name) for name in values if name not in cls.model_fields] if isinstance(values, Mapping) else []
        if unknown:
            raise ValueError(f"no such term: {', '.join(unknown)}; the terms are {', '.join(cls.model_fields)}")
        return values

    @model_validator(mode="after")
    def _some_term(self) -> LossWeights:
        if not self.weights():
            raise ValueError("no term has a weight: nothing would be learnt")
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
    line_tokens: int | None = Field(None, ge=2)
    """Sequence packing: the rows of a micro batch share lines of at most this many tokens (a longer row has its own), and see nothing of
    each other; None gives each row a line, padded to the longest. Steps and losses are the same, but for rounding."""
    losses: LossWeights = LossWeights(cross_entropy=1.0, forward_kl=1.0)
    """Weights of the loss terms, each a mean over its tokens; given at all, exactly the terms given. Tokens of rows without the teacher's
    top-k contribute cross-entropy alone."""
    min_divergence: float | None = Field(None, gt=0)
    """Tokens whose forward KL is below this, in nats, teach nothing, by any term (they still count in the means); None masks no token."""
    zero_stage: Literal[1, 2, 3] = 1
    """DeepSpeed ZeRO: what the workers share out; 1 optimizer state, 2 gradients too, 3 weights too."""

    @model_validator(mode="after")
    def _terms_of_a_cache(self) -> DistillConfig:
        for name in WHOLE_TEACHER:
            if name in self.losses.weights():
                raise ValueError(
                    f"losses.{name} needs the teacher's distribution over the whole vocabulary, and rollouts keep its top-k tokens alone; "
                    "use losses.forward_kl, and losses.tail_penalty against what the teacher did not keep"
                )
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
