"""TRL's trainers in our harness: settings, metrics, validation, checkpoints and the student at the end."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray.train
import torch
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointUploadMode
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from transformers.utils.logging import disable_progress_bar

from supertiny.tracking import Tracker
from supertiny.train.checkpoints import agree_on_newest, checkpoint_folder, seal, step_of, take_name
from supertiny.train.config import DrawConfig, TrainConfig
from supertiny.train.metrics import check_finite, resume_trackers
from supertiny.train.notice import AnswerNotice, Notice
from supertiny.train.ops import prepare_deepspeed, zero_settings
from supertiny.train.plan import DrawPlan
from supertiny.train.stopping import STOP
from supertiny.train.validation import EXACT_MATCH, Validation, open_validation, publish

log = logging.getLogger(__name__)
METRICS = {
    "loss": "loss",
    "entropy": "entropy",
    "grad_norm": "gradient_norm",
    "learning_rate": "learning_rate",
    "completions/mean_length": "completion_tokens",
    "completions/clipped_ratio": "cut_fraction",
    "step_time": "seconds",
}
"""TRL's names, in every trainer of it, and ours."""
DECISIVE = ("loss", "gradient_norm")
"""Ours of the metrics without which there is nothing to go on with."""
NAMED = ("reward", "kl", "completion_tokens", "entropy", EXACT_MATCH)
"""Metrics of a progress line, beside the loss."""


def run_trainer(plan: DrawPlan, names: Mapping[str, str], build: Callable[[Any, Any, list[Any], int], Any]) -> dict[str, float]:
    """The last step's metrics; worker 0 leaves the trained student in `plan.output`.

    Args:
        names: TRL's names of further metrics, and ours.
        build: makes TRL's trainer from the student, its tokenizer, the callbacks and the steps that an earlier attempt has done.

    Raises:
        NotFinite: the loss or the gradient is NaN or infinite; every worker raises it, at the same step.
        CorruptArtifact: there are checkpoints, and all are damaged.
    """
    prepare_deepspeed()
    disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer = AutoTokenizer.from_pretrained(plan.student)
    checkpoint = agree_on_newest(plan.checkpoints)
    first_step = step_of(checkpoint) if checkpoint else 0
    validation = open_validation(plan)
    watch = Watch(plan, {**METRICS, **names}, first_step, validation)
    model = AutoModelForCausalLM.from_pretrained(plan.student, dtype=torch.float32, attn_implementation=plan.config.attention)
    callbacks = [watch, SealCheckpoints(plan.checkpoints), AnswerNotice(Notice(plan.config.spot, plan.checkpoints.with_name(STOP)))]
    watch.trainer = trainer = build(model, tokenizer, callbacks, first_step)
    trainer.remove_callback(PrinterCallback)  # the trainer's own lines, which say what ours do at length
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    watch.close()
    model = trainer.accelerator.unwrap_model(trainer.model)
    return watch.last | publish(model, validation, plan.output, plan.config.zero_stage)


def common_settings(config: TrainConfig, num_steps: int, num_workers: int, output: Path) -> dict[str, Any]:
    """What every trainer of TRL takes, in transformers' words; there may be fewer workers than `config` wants."""
    return {
        "output_dir": str(output),
        "max_steps": num_steps,
        "per_device_train_batch_size": config.micro_batch,
        "gradient_accumulation_steps": config.batch // (num_workers * config.micro_batch),
        "learning_rate": config.learning_rate,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.gradient_clip,
        "seed": config.seed,
        "bf16": True,
        "use_cpu": config.device == "cpu",
        "gradient_checkpointing": False,
        "ddp_find_unused_parameters": False,
        "save_strategy": "steps",
        "save_steps": config.checkpoint_every_steps,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "report_to": [],
        "deepspeed": _deepspeed_settings(config) if config.zero_stage else None,
    }


def draw_settings(config: DrawConfig) -> dict[str, Any]:
    """How completions are drawn, in TRL's words."""
    settings: dict[str, Any] = {"max_completion_length": config.max_completion_tokens, "temperature": config.temperature}
    if config.generation == "vllm":
        settings |= {"use_vllm": True, "vllm_mode": "colocate", "vllm_enable_sleep_mode": True}
        if config.vllm_memory_fraction is not None:
            settings["vllm_gpu_memory_utilization"] = config.vllm_memory_fraction
    return settings


class DrawTrainer:
    """What we add to either of TRL's trainers that draw completions, which comes after it among a class's bases.

    Args:
        steps_done: by an earlier attempt.
        rate: the learning rate of a step, counted from 1.
    """

    def __init__(self, *, steps_done: int, rate: Callable[[int], float], **arguments: Any) -> None:
        super().__init__(**arguments)
        self._steps_done, self._rate = steps_done, rate
        self.prompt_ids: list[str] = []
        """Prompts of this worker's part of the step, in the dataset's column `prompt_id`."""

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule of every training here; transformers' own would begin with a step at a rate of 0."""
        trainer: Any = self
        trainer.lr_scheduler = LambdaLR(optimizer or trainer.optimizer, lambda done: self._rate(done + 1) / trainer.args.learning_rate)
        return trainer.lr_scheduler

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        """TRL's sampler of prompts, before the pass that an earlier attempt was in.

        It draws the order of every pass from one generator, whose state no checkpoint has (TRL 1.16): a resumed run would skip so many
        prompts of the first pass's order, and see some of its own pass twice and others not at all.
        """
        sampler = super()._get_train_sampler(dataset)  # type: ignore[misc] # TRL's
        for _ in range(self._steps_done // (sampler.num_samples // sampler.batch_size)):
            next(iter(sampler))  # which draws one
        return sampler

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's batch of this worker's completions, in the order of its prompts."""
        self.prompt_ids = [row["prompt_id"] for row in inputs]
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)  # type: ignore[misc] # TRL's
        return batch


class Watch(TrainerCallback):
    """Writes every step's metrics and, now and then, a line with the time left; asks the validation prompts."""

    def __init__(self, plan: DrawPlan, names: Mapping[str, str], first_step: int, validation: Validation | None) -> None:
        self._plan, self._names, self._first_step, self._validation = plan, names, first_step, validation
        self._asked: dict[str, float] = {}
        self._tokens = 0.0
        self._tracker: Tracker | None = None
        self.trainer: DrawTrainer | None = None
        """Whose prompts are named where a step has no finite loss."""
        self.last: dict[str, float] = {}
        if dist.get_rank() == 0:
            self._tracker = resume_trackers(plan.config.trackers, plan.output, first_step, plan.num_steps)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Called by the trainer on every worker, before the first step."""
        self._tokens = state.num_input_tokens_seen
        if self._validation and not self._first_step:
            self._validation.ask(model, 0)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Called by the trainer on every worker, before the step is logged."""
        if self._validation and self._validation.due(state.global_step):
            self._asked = self._validation.ask(model, state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Called by the trainer, on every worker with the same numbers.

        Raises:
            NotFinite: the loss or the gradient is not a number; with the prompts of the step.
        """
        if not logs or "grad_norm" not in logs:
            return  # the trainer's closing summary
        metrics = {ours: _number(logs[theirs]) for theirs, ours in self._names.items() if theirs in logs}
        if not all(math.isfinite(metrics[name]) for name in DECISIVE):
            check_finite({name: metrics[name] for name in DECISIVE}, "prompts", self._prompt_ids())
        metrics["tokens"] = logs["num_tokens"] - self._tokens
        metrics["tokens_per_second"] = round(metrics["tokens"] / metrics["seconds"], 1)
        self._tokens = logs["num_tokens"]
        self.last, self._asked = {**metrics, **self._asked}, {}
        if self._tracker:
            self._tracker.log(self.last, state.global_step)
            self._say(state.global_step)

    def close(self) -> None:
        """Close the trackers."""
        if self._tracker:
            self._tracker.close()

    def _prompt_ids(self) -> list[str]:
        """Those of all workers, each once; all workers have to ask."""
        assert self.trainer is not None
        everyones: list[list[str]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(everyones, self.trainer.prompt_ids)
        return list(dict.fromkeys(each for ids in everyones for each in ids))

    def _say(self, step: int) -> None:
        num_steps = self._plan.num_steps
        if step % self._plan.config.log_every_steps == 0 or step == num_steps:
            named = ", ".join(f"{name} {self.last[name]:.4g}" for name in NAMED if name in self.last)
            left = (num_steps - step) * self.last["seconds"]
            log.info("step %d/%d: loss %.4f, %s, %.0f s left", step, num_steps, self.last["loss"], named, left)


def _number(value: float | None) -> float:
    """A metric of TRL's, which writes None where all that it has of one is NaN."""
    return math.nan if value is None else float(value)


class SealCheckpoints(TrainerCallback):
    """Gives the trainer's checkpoints our name and hashes, and reports them to Ray Train, which keeps the last two."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the trainer on every worker; the state of a run that goes on has the interval of before."""
        state.save_steps = args.save_steps

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the trainer on every worker, after it has decided; after the last step nothing is left to go on with."""
        control.should_save = control.should_save and state.global_step < state.max_steps

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the trainer on every worker, each having written its part."""
        dist.barrier()
        folder = checkpoint_folder(self._root, state.global_step)
        if dist.get_rank() == 0:
            take_name(self._root / f"checkpoint-{state.global_step}", folder)
            seal(folder, state.global_step, dist.get_world_size())
        dist.barrier()
        ray.train.report(
            {"step": state.global_step},
            checkpoint=Checkpoint.from_directory(folder),
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
        )


def _deepspeed_settings(config: TrainConfig) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": True},
        "zero_allow_untested_optimizer": True,
        **zero_settings(config),
    }
