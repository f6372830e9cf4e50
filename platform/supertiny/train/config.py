"""Settings of the stages that change a student's weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from supertiny.config import Config, StageConfig
from supertiny.llm.config import drop_conduct
from supertiny.tracking import TrackerName
from supertiny.train.loss_config import DIVERGENCES, WHOLE_TEACHER, LossWeights
from supertiny.train.quantization_config import QuantizationAwareSettings
from supertiny.train.reward_config import RewardJudgeConfig, RewardWeights

CONDUCT = (
    *("trackers", "log_every_steps"),
    *("labels", "start_limit_seconds", "stall_seconds"),
    *("spot", "max_failures", "checkpoint_every_steps"),
)
"""How a training is watched, placed and recovered: it goes on with others where it was."""


class LoraSettings(Config):
    """Train low-rank additions to the weights instead of the weights (LoRA, by peft), and add them up at the end."""

    rank: int = Field(16, ge=1, le=1024)
    """Rank of each addition (peft's `r`)."""
    alpha: int = Field(32, ge=1)
    """An addition is scaled by alpha / rank (peft's `lora_alpha`)."""


class ValidationConfig(Config):
    """Watch the student on prompts that it is not trained on, and publish the weights that answered most of them rightly."""

    fraction: float = Field(0.05, gt=0, le=0.5)
    """Share of the rollouts' prompts that is kept out of training, chosen by a hash of their ids: stages with one fraction keep the same
    prompts out. Those without a reference are not asked."""
    every_steps: int = Field(10, ge=1)
    """Steps between two rounds of greedy answers, judged by the task's verifier; there is one before the first step and one at the end."""
    max_completion_tokens: int = Field(96, ge=1)
    """Longest answer, in tokens."""


class TrainConfig(StageConfig):
    """What distillation and reinforcement learning share: a student, its rollouts, workers and an optimizer."""

    student: str
    """Model to start from."""
    rollouts: str = "rollouts"
    """Rollout artifact to learn from."""
    num_workers: int = Field(2, ge=1, le=1024)
    """Training processes, one logical CPU each, and one GPU where that is their device."""
    min_workers: int | None = Field(None, ge=1)
    """Fewest workers to go on with where some are lost and the cluster has no others; `num_workers` again once it has. None takes all."""
    device: Literal["cpu", "gpu"] = "cpu"
    """What a worker computes on."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Nodes that the workers may be on: those with all of these labels (Ray's `label_selector`), `{"supertiny/group" = "train"}`."""
    start_limit_seconds: int = Field(60, ge=10, le=7200)
    """Longest wait for a place for all workers, of three tries; a cluster that has to start GPU nodes first wants 900."""
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
    final_learning_rate_fraction: float = Field(0.1, ge=0, le=1)
    """The learning rate falls along a cosine to this share of its peak; 1 keeps it at the peak."""
    weight_decay: float = Field(0.0, ge=0, le=1)
    """AdamW's decoupled weight decay."""
    gradient_clip: float = Field(1.0, gt=0)
    """Largest norm of a step's gradient (DeepSpeed's `gradient_clipping`)."""
    zero_stage: Literal[1, 2, 3] | None = None
    """DeepSpeed ZeRO: what the workers share out; 1 optimizer state, 2 gradients too, 3 weights too. None is plain data parallelism."""
    offload: bool = False
    """Keep in the host's memory what ZeRO shares out: the optimizer's state and, at stage 3, the weights."""
    lora: LoraSettings | None = None
    """For students that are too big to train whole; None trains all weights."""
    validation: ValidationConfig | None = None
    """Prompts to choose the weights by; None trains on all and publishes the last weights."""
    checkpoint_every_steps: int = Field(50, ge=1)
    """Steps between checkpoints; a killed run goes on from the last one."""
    max_failures: int = Field(1, ge=0, le=100)
    """Lost workers to recover from within one run, each time from the last checkpoint."""
    spot: bool = False
    """Ask after every step whether a node's end was announced, and write a checkpoint then; one process more watches for it."""
    stall_seconds: int = Field(300, ge=10, le=7200)
    """Longest wait of one worker for another (the process group's time-out)."""
    log_every_steps: int = Field(10, ge=1)
    """Steps between progress lines; the metrics file has every step."""
    trackers: tuple[TrackerName, ...] = ("tensorboard",)
    """What every step's metrics go to beside `metrics.jsonl`; `mlflow` and `wandb` need their extra installed."""
    seed: int = Field(0, ge=0)
    """Order of the rows, and of whatever is drawn."""

    def settings(self) -> dict[str, Any]:
        """As of every stage, without what changes no result."""
        return {key: value for key, value in super().settings().items() if key not in CONDUCT}

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> TrainConfig:
        share = self.num_workers * self.micro_batch
        if self.batch % share:
            raise ValueError(
                f"batch {self.batch} is not a multiple of num_workers x micro_batch = {self.num_workers} x {self.micro_batch} = {share}"
            )
        return self

    @model_validator(mode="after")
    def _any_number_of_workers(self) -> TrainConfig:
        if self.min_workers is None:
            return self
        if self.min_workers >= self.num_workers:
            raise ValueError(f"min_workers {self.min_workers} without effect: num_workers is {self.num_workers}")
        uneven = [n for n in range(self.min_workers, self.num_workers) if self.batch % (n * self.micro_batch)]
        if uneven:
            raise ValueError(
                f"min_workers {self.min_workers}: batch {self.batch} is not a multiple of {uneven[0]} x micro_batch {self.micro_batch}"
            )
        return self

    @model_validator(mode="after")
    def _zero_as_asked(self) -> TrainConfig:
        if self.offload and (self.device == "cpu" or self.zero_stage is None):
            raise ValueError(
                "offload without effect: it moves what ZeRO shares out from a GPU to the host; set device gpu and a zero_stage"
            )
        if self.zero_stage == 3 and (self.validation or self.lora):
            raise ValueError("zero_stage 3 leaves no worker the whole weights, which validation and lora take; choose 2, or leave them out")
        return self


class DrawConfig(Config):
    """How the student's own completions are drawn."""

    temperature: float = Field(1.0, gt=0, le=10)
    """Temperature of the completions drawn."""
    max_completion_tokens: int = Field(96, ge=1)
    """Longest completion, in tokens; a longer one is cut and judged as it stands."""
    generation: Literal["transformers", "vllm"] = "transformers"
    """What draws them: `vllm` shares the worker's GPU and sleeps while the student is trained."""
    vllm_memory_fraction: float | None = Field(None, gt=0, lt=1)
    """Share of the GPU's memory for vLLM while it is awake; None is TRL's 0.3."""

    @model_validator(mode="after")
    def _vllm_as_asked(self) -> DrawConfig:
        if self.vllm_memory_fraction is not None and self.generation != "vllm":
            raise ValueError("vllm_memory_fraction without effect: generation is transformers")
        return self


def check_elastic(config: TrainConfig) -> None:
    """Refuse a range of workers where TRL's trainers run in DeepSpeed; raises ValueError."""
    if config.min_workers is not None and config.zero_stage is not None:
        raise ValueError("min_workers: with TRL's trainers a checkpoint of ZeRO fits its own number of workers alone; leave zero_stage out")


def check_generation(generation: str, device: str) -> None:
    """Refuse vLLM beside training without a GPU; raises ValueError."""
    if generation == "vllm" and device != "gpu":
        raise ValueError("generation vllm takes device gpu: TRL hands it the weights over NCCL; on a CPU, leave generation out")


class OnPolicyConfig(DrawConfig):
    """The student answers, and the teacher says how it would have gone on after each token (GKD, arXiv 2306.13649)."""

    teacher: str = "package://supertiny.tasks.assistant/models/teacher"
    """Model artifact of the teacher; it must share the student's tokenizer."""
    temperature: float = Field(1.0, gt=0, le=10)
    """Temperature of the completions drawn and, as TRL has one number for both, of the two distributions that are compared."""
    jsd_beta: float | None = Field(None, gt=0, lt=1)
    """The teacher's share of the mixture in the generalised Jensen-Shannon divergence (TRL's `beta`); for `losses.jsd` alone."""


class ReplayConfig(Config):
    """Earlier rollouts among the new ones, against forgetting."""

    rollouts: tuple[str, ...] = Field(min_length=1)
    """Rollout artifacts of earlier rounds."""
    fraction: float = Field(0.2, gt=0, lt=1)
    """Share of all rows that comes from them, drawn under `seed`; all of them where there are not enough."""


class DistillConfig(TrainConfig):
    """Teach the student the accepted completions and the teacher's token distribution over them."""

    name: str = "distill"
    """Name of the artifact that this stage publishes under `run_root`."""
    student: str = "package://supertiny.tasks.assistant/models/base"
    """Model to start from."""
    mode: Literal["off_policy", "on_policy"] = "off_policy"
    """Whose completions are learnt from: the rollouts' (off), or the student's own to the rollouts' prompts, scored by the teacher (on).
    On-policy fails without an off-policy start (arXiv 2604.13016)."""
    on_policy: OnPolicyConfig | None = None
    """How, where `mode` is `on_policy`."""
    replay: ReplayConfig | None = None
    """Earlier rollouts to mix in; None learns from `rollouts` alone."""
    learning_rate: float = Field(5e-4, gt=0, le=1)
    """Peak learning rate of AdamW; a model of 0.5B wants about 1e-5."""
    epochs: float = Field(3.0, gt=0, le=1000)
    """Times that every row is seen; a fraction stops in the middle of a pass."""
    max_tokens: int = Field(1024, ge=2)
    """Longest row, prompt and completion together, in tokens; longer rows are left out and counted."""
    line_tokens: int | None = Field(None, ge=2)
    """Sequence packing: the rows of a micro batch share lines of at most this many tokens (a longer row has its own), and see nothing of
    each other; None gives each row a line, padded to the longest. Steps and losses are the same, but for rounding."""
    losses: LossWeights = LossWeights(cross_entropy=1.0, forward_kl=1.0)
    """Weights of the loss terms, each a mean over its tokens; given at all, exactly the terms given. Tokens of rows without the teacher's
    top-k contribute cross-entropy alone. On-policy it is one divergence over the whole vocabulary, of weight 1: reverse KL unless given."""
    min_divergence: float | None = Field(None, gt=0)
    """Tokens whose forward KL is below this, in nats, teach nothing, by any term (they still count in the means); None masks no token."""
    quantization_aware: QuantizationAwareSettings | None = None
    """Train through the rounding of a quantized format, where quantizing afterwards costs too much; None trains the weights as they are."""
    peak_teraflops: float | None = Field(None, gt=0)
    """What a worker's device can do, in 10^12 operations a second of the type that it trains in: adds `fraction_of_peak` to the metrics,
    at 6 operations a parameter and token (arXiv 2001.08361)."""
    zero_stage: Literal[1, 2, 3] | None = 1
    """DeepSpeed ZeRO: what the workers share out; 1 optimizer state, 2 gradients too, 3 weights too."""

    @model_validator(mode="before")
    @classmethod
    def _on_policy_defaults(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or values.get("mode") != "on_policy":
            return values
        elastic = {"zero_stage": None} if values.get("min_workers") is not None else {}
        return {"on_policy": {}, "losses": {"reverse_kl": 1.0}, **elastic, **values}

    @model_validator(mode="after")
    def _as_its_mode_takes(self) -> DistillConfig:
        if self.mode == "on_policy":
            self._check_on_policy()
            return self
        if self.on_policy is not None:
            raise ValueError('on_policy without effect: set mode = "on_policy"')
        if self.quantization_aware is not None and self.lora is not None:
            raise ValueError("quantization_aware: what LoRA adds is rounded only once it is added up; leave lora out")
        if self.zero_stage is None:
            raise ValueError("zero_stage: off-policy distillation runs in DeepSpeed; choose 1, 2 or 3")
        for name in WHOLE_TEACHER:
            if name in self.losses.weights():
                raise ValueError(
                    f"losses.{name} needs the teacher's distribution over the whole vocabulary, and rollouts keep its top-k tokens alone; "
                    "use losses.forward_kl, and losses.tail_penalty against what the teacher did not keep"
                )
        return self

    def _check_on_policy(self) -> None:
        weights = self.losses.weights()
        if list(weights.values()) != [1.0] or not set(weights) <= set(DIVERGENCES):
            raise ValueError(f"losses: on-policy there is one of {', '.join(DIVERGENCES)}, with weight 1, got {weights}")
        without = [
            name for name in ("line_tokens", "min_divergence", "peak_teraflops", "quantization_aware") if getattr(self, name) is not None
        ]
        if without:
            raise ValueError(f"{' and '.join(without)} without effect: only off-policy distillation takes it")
        assert self.on_policy is not None
        if (self.on_policy.jsd_beta is None) == ("jsd" in weights):
            raise ValueError("on_policy.jsd_beta belongs to losses.jsd: give both or neither")
        if self.on_policy.max_completion_tokens >= self.max_tokens:
            raise ValueError(f"max_tokens {self.max_tokens} leaves no room for a prompt: completions have up to "
                             f"{self.on_policy.max_completion_tokens}")  # fmt: skip
        check_generation(self.on_policy.generation, self.device)
        check_elastic(self)


class RlConfig(DrawConfig, TrainConfig):
    """Raise the reward of the student's own completions (GRPO)."""

    name: str = "rl"
    """Name of the artifact that this stage publishes under `run_root`."""
    student: str = "distill"
    """Model to start from; its frozen copy is the reference."""
    steps: int = Field(30, ge=1)
    """Optimizer updates."""
    final_learning_rate_fraction: float = Field(1.0, ge=0, le=1)
    """As in `TrainConfig`; constant, as in DAPO (arXiv 2503.14476), since there is no last pass to settle in."""
    group_size: int = Field(8, ge=2, le=1024)
    """Completions drawn for each prompt (TRL's `num_generations`)."""
    rewards: RewardWeights = RewardWeights(verifier=1.0)
    """Rewards by name and weight; given at all, exactly those given."""
    judge: RewardJudgeConfig | None = None
    """Who gives the reward `judge`."""
    drop_equal_groups: bool = True
    """Leave groups whose completions all have one reward out of the loss and of its means, where they would only dilute the others; KL
    and entropy in the metrics are then of what is left, 0 where nothing is."""
    kl_coef: float = Field(1e-3, ge=0)
    """Weight of the reverse KL to the reference (TRL's `beta`); 0 keeps no reference in memory."""

    def settings(self) -> dict[str, Any]:
        """As of every training, without how the judge's endpoint is asked."""
        values = super().settings()
        drop_conduct((values["judge"] or {}).get("endpoint"))
        return values

    @model_validator(mode="after")
    def _whole_groups(self) -> RlConfig:
        if self.batch % self.group_size:
            raise ValueError(f"batch {self.batch} is not a multiple of group_size {self.group_size}")
        if (self.judge is None) == ("judge" in self.rewards.weights()):
            raise ValueError("judge and rewards.judge belong together: give both or neither")
        check_generation(self.generation, self.device)
        check_elastic(self)
        return self
