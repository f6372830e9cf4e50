"""What each distillation worker runs: DeepSpeed steps over its share of every batch, checkpoints, the student at the end."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path
from typing import Any

import deepspeed
import ray.train
import torch
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointUploadMode
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from supertiny.tracking import JsonlTracker
from supertiny.train.batching import MicroBatch, Rows, batches, collate, share
from supertiny.train.checkpoints import agree_on_newest, checkpoint_folder, seal, step_of
from supertiny.train.config import DistillConfig
from supertiny.train.losses import cross_entropy, forward_kl
from supertiny.train.metrics import check_finite, keep_until
from supertiny.train.ops import prepare_deepspeed
from supertiny.train.packing import PackedRows, read_rows
from supertiny.train.plan import DistillPlan
from supertiny.train.schedule import learning_rate

log = logging.getLogger(__name__)
STATE = "deepspeed"
"""Folder of a checkpoint that DeepSpeed fills."""


def distill_worker(plan: DistillPlan) -> dict[str, float]:
    """The last step's metrics, and the first's loss; worker 0 leaves the trained student in `plan.output`.

    Raises:
        NotFinite: a loss or gradient is NaN or infinite; every worker raises it, at the same step.
        CorruptArtifact: there are checkpoints, and all are damaged.
    """
    config = plan.config
    worker, num_workers = dist.get_rank(), dist.get_world_size()
    rows = read_rows(plan.rows)
    engine = _engine(config, plan.student)
    first_step = _resume(engine, plan.checkpoints)
    metrics_path = plan.output / "metrics.jsonl"
    if worker == 0:
        keep_until(metrics_path, first_step)
    progress = Progress(JsonlTracker(metrics_path), first_step, plan.num_steps, config.log_every_steps)
    for step, batch in enumerate(batches(rows.lengths, config.batch, config.seed, first_step, plan.num_steps), first_step + 1):
        for group in engine.optimizer.param_groups:
            group["lr"] = learning_rate(step, plan.num_steps, config)
        metrics = _step(engine, rows, batch, share(batch, worker, num_workers, config.micro_batch), config)
        if worker == 0:
            progress.log({**metrics, "learning_rate": learning_rate(step, plan.num_steps, config)}, step)
        if step % config.checkpoint_every_steps == 0 and step < plan.num_steps:
            _checkpoint(engine, checkpoint_folder(plan.checkpoints, step), step, metrics)
    _save_student(engine, plan.output)
    return metrics


def micro_loss_sums(logits: Tensor, batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """Cross-entropy summed over the completion tokens, and forward KL over those with a teacher; both in nats.

    Args:
        logits: (B, T, V).
    """
    logits_NV = logits.flatten(0, 1)[batch.predictors_N]
    entropy = cross_entropy(logits_NV, batch.targets_N).sum()
    if len(batch.with_teacher_M) == 0:
        return entropy, torch.zeros_like(entropy)
    return entropy, forward_kl(logits_NV[batch.with_teacher_M], batch.teacher_ids_MK, batch.teacher_logprobs_MK).sum()


class Progress:
    """Writes every step's metrics and, now and then, a line with the time left."""

    def __init__(self, tracker: JsonlTracker, first_step: int, num_steps: int, every: int) -> None:
        self._tracker = tracker
        self._first_step = first_step
        self._num_steps = num_steps
        self._every = every
        self._started = self._last = time.monotonic()

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Record a step that has just ended."""
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        metrics = {**metrics, "seconds": round(seconds, 4), "tokens_per_second": round(metrics["tokens"] / seconds, 1)}
        self._tracker.log(metrics, step)
        if step % self._every == 0 or step == self._num_steps:
            left = (now - self._started) / (step - self._first_step) * (self._num_steps - step)
            line = "step %d/%d: loss %.4f (cross-entropy %.4f, forward KL %.4f), %.0f tokens/s, %.0f s left"
            terms = (metrics["loss"], metrics["cross_entropy"], metrics["forward_kl"])
            log.info(line, step, self._num_steps, *terms, metrics["tokens_per_second"], left)


def _engine(config: DistillConfig, student: Path) -> Any:
    prepare_deepspeed()
    disable_progress_bar()  # type: ignore[no-untyped-call]
    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.bfloat16, attn_implementation=config.attention)
    model.config.use_cache = False
    settings = {
        "train_batch_size": config.batch,
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": config.zero_stage},
        "gradient_clipping": config.gradient_clip,
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": config.learning_rate, "weight_decay": config.weight_decay, "torch_adam": True},
        },
        "steps_per_print": 10**9,
    }
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=settings)
    engine.train()
    return engine


def _step(engine: Any, rows: PackedRows, batch: Rows, micro_batches: list[Rows], config: DistillConfig) -> dict[str, float]:
    """One optimizer update. Each loss term is the mean over its tokens in the whole batch, on all workers."""
    num_tokens, num_teacher = rows.completion_tokens(batch), max(1, rows.teacher_tokens(batch))
    # DeepSpeed divides by the number of workers and of micro batches; our sums are over tokens, so that is taken back
    scale = dist.get_world_size() * len(micro_batches)
    sums = torch.zeros(2)
    for own in micro_batches:
        micro = collate(rows, own)
        logits = engine(input_ids=micro.tokens_BT, attention_mask=micro.mask_BT).logits
        entropy, kl = micro_loss_sums(logits, micro)
        loss = config.cross_entropy_weight * entropy / num_tokens + config.forward_kl_weight * kl / num_teacher
        sums += torch.stack([entropy.detach(), kl.detach()])
        engine.backward(loss * scale)
        engine.step()
    dist.all_reduce(sums)
    mean_entropy, mean_kl = float(sums[0]) / num_tokens, float(sums[1]) / num_teacher
    metrics = {
        "loss": config.cross_entropy_weight * mean_entropy + config.forward_kl_weight * mean_kl,
        "cross_entropy": mean_entropy,
        "forward_kl": mean_kl,
        "gradient_norm": float(engine.get_global_grad_norm()),
        "tokens": int(rows.lengths[batch].sum()),
    }
    check_finite(metrics, [rows.rollout_ids[row] for row in batch])
    return metrics


def _checkpoint(engine: Any, folder: Path, step: int, metrics: dict[str, float]) -> None:
    """Write a checkpoint with all workers, seal it and report it to Ray Train, which keeps the last two."""
    if dist.get_rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
    dist.barrier()
    engine.save_checkpoint(folder, tag=STATE, save_latest=False)
    dist.barrier()
    if dist.get_rank() == 0:
        seal(folder, step)
    ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder), checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD)


def _resume(engine: Any, root: Path) -> int:
    """Steps already done, after loading the last good checkpoint."""
    folder = agree_on_newest(root)
    if folder is None:
        return 0
    engine.load_checkpoint(folder, tag=STATE)
    log.info("going on after step %d, from %s", step_of(folder), folder)
    return step_of(folder)


def _save_student(engine: Any, output: Path) -> None:
    model = engine.module
    with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=engine.zero_optimization_stage() == 3):
        if dist.get_rank() == 0:
            model.config.use_cache = True
            model.save_pretrained(output)
    dist.barrier()
