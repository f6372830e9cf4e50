"""What each reinforcement learning worker runs: TRL's GRPO trainer, with our rewards, metrics and checkpoints."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path
from typing import Any

import ray.train
import torch
import torch.distributed as dist
from datasets import Dataset
from ray.train import Checkpoint, CheckpointUploadMode
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from transformers.utils.logging import disable_progress_bar
from trl import GRPOConfig, GRPOTrainer  # type: ignore[attr-defined] # they are loaded lazily

from supertiny.errors import NotFinite
from supertiny.tasks.base import load_task
from supertiny.tracking import JsonlTracker
from supertiny.train.checkpoints import agree_on_newest, checkpoint_folder, seal, step_of
from supertiny.train.config import RlConfig
from supertiny.train.metrics import keep_until
from supertiny.train.ops import prepare_deepspeed
from supertiny.train.plan import RlPlan, RlPrompt
from supertiny.train.rewards import VerifierReward

log = logging.getLogger(__name__)
METRICS = {
    "loss": "loss",
    "reward": "reward",
    "reward_std": "reward_std",
    "kl": "kl",
    "entropy": "entropy",
    "grad_norm": "gradient_norm",
    "learning_rate": "learning_rate",
    "completions/mean_length": "completion_tokens",
    "completions/clipped_ratio": "cut_fraction",
    "frac_reward_zero_std": "equal_groups_fraction",
    "step_time": "seconds",
}
"""TRL's names and ours."""


def grpo_worker(plan: RlPlan) -> dict[str, float]:
    """The last step's metrics; worker 0 leaves the trained student in `plan.output`.

    Raises:
        NotFinite: the loss or the gradient is NaN or infinite; every worker raises it, at the same step.
        CorruptArtifact: there are checkpoints, and all are damaged.
    """
    config = plan.config
    prepare_deepspeed()
    disable_progress_bar()  # type: ignore[no-untyped-call]
    rows = [RlPrompt.model_validate_json(line) for line in plan.prompts.read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(plan.student)
    checkpoint = agree_on_newest(plan.checkpoints)
    metrics = StepMetrics(plan.output / "metrics.jsonl", config, checkpoint)
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(plan.student, dtype=torch.float32, attn_implementation=config.attention),
        reward_funcs=[VerifierReward(load_task(config.task), [row.prompt for row in rows], tokenizer)],
        args=trainer_settings(config, plan.checkpoints),
        train_dataset=Dataset.from_list([{"prompt": row.text, "prompt_id": row.prompt.id} for row in rows]),
        processing_class=tokenizer,
        callbacks=[metrics, SealCheckpoints(plan.checkpoints)],
    )
    trainer.remove_callback(PrinterCallback)  # the trainer's own lines, which say what ours do at length
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if dist.get_rank() == 0:
        model = trainer.accelerator.unwrap_model(trainer.model)
        torch.nn.Module.to(model, torch.bfloat16).save_pretrained(plan.output)
    dist.barrier()
    return metrics.last


def trainer_settings(config: RlConfig, output: Path) -> GRPOConfig:
    """TRL's words for our settings."""
    return GRPOConfig(
        output_dir=str(output),
        max_steps=config.steps,
        per_device_train_batch_size=config.micro_batch,
        gradient_accumulation_steps=config.batch // (config.num_workers * config.micro_batch),
        num_generations=config.group_size,
        max_completion_length=config.max_completion_tokens,
        temperature=config.temperature,
        beta=config.kl_coef,
        scale_rewards="none",  # divided by a group's deviation, easy and hard prompts would weigh more (Dr. GRPO, arXiv 2503.20783)
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=math.ceil(config.warmup_fraction * config.steps),
        weight_decay=config.weight_decay,
        max_grad_norm=config.gradient_clip,
        seed=config.seed,
        bf16=True,
        use_cpu=True,
        gradient_checkpointing=False,
        ddp_find_unused_parameters=False,
        save_strategy="steps",
        save_steps=config.checkpoint_every_steps,
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to=[],
        deepspeed=_deepspeed_settings(config) if config.zero_stage else None,
    )


class StepMetrics(TrainerCallback):
    """Writes every step's metrics and, now and then, a line with the time left."""

    def __init__(self, path: Path, config: RlConfig, checkpoint: Path | None) -> None:
        self._tracker = JsonlTracker(path)
        self._config = config
        self.last: dict[str, float] = {}
        if dist.get_rank() == 0:
            keep_until(path, step_of(checkpoint) if checkpoint else 0)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Called by the trainer, on every worker with the same numbers.

        Raises:
            NotFinite: the loss or the gradient is not a number.
        """
        if not logs or "reward" not in logs:
            return  # the trainer's closing summary
        self.last = {ours: float(logs[theirs]) for theirs, ours in METRICS.items() if theirs in logs}
        wrong = [name for name in ("loss", "gradient_norm") if not math.isfinite(self.last[name])]
        if wrong:
            raise NotFinite(f"{' and '.join(wrong)} not finite at step {state.global_step}; lower learning_rate")
        if dist.get_rank() == 0:
            self._record(state.global_step)

    def _record(self, step: int) -> None:
        last = {"kl": 0.0, **self.last}
        self._tracker.log(last, step)
        if step % self._config.log_every_steps == 0 or step == self._config.steps:
            left = (self._config.steps - step) * last["seconds"]
            line = "step %d/%d: reward %.3f, KL %.4f, %.1f tokens a completion, %.0f s left"
            log.info(line, step, self._config.steps, last["reward"], last["kl"], last["completion_tokens"], left)


class SealCheckpoints(TrainerCallback):
    """Gives the trainer's checkpoints our name and hashes, and reports them to Ray Train, which keeps the last two."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the trainer on every worker, each having written its part."""
        dist.barrier()
        folder = checkpoint_folder(self._root, state.global_step)
        if dist.get_rank() == 0:
            os.replace(self._root / f"checkpoint-{state.global_step}", folder)
            seal(folder, state.global_step)
        dist.barrier()
        ray.train.report(
            {"step": state.global_step},
            checkpoint=Checkpoint.from_directory(folder),
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
        )


def _deepspeed_settings(config: RlConfig) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": config.zero_stage},
        "zero_allow_untested_optimizer": True,
    }
