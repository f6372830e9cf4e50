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
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from supertiny.tracking import Tracker
from supertiny.train.batching import Rows, batches, collate, share
from supertiny.train.checkpoints import agree_on_newest, checkpoint_folder, seal, step_of, workers_of
from supertiny.train.config import DistillConfig
from supertiny.train.fake_quantization import round_layers
from supertiny.train.lora import add_lora
from supertiny.train.metrics import check_finite, resume_trackers
from supertiny.train.notice import Notice
from supertiny.train.objective import ENTROPY, objective_of
from supertiny.train.ops import make_universal, prepare_deepspeed, zero_settings
from supertiny.train.packing import PackedRows, read_rows
from supertiny.train.plan import DistillPlan
from supertiny.train.schedule import learning_rate
from supertiny.train.stopping import STOP
from supertiny.train.student_loss import StudentLoss, check_boundaries
from supertiny.train.validation import SECONDS, open_validation, publish

log = logging.getLogger(__name__)
STATE = "deepspeed"
"""Folder of a checkpoint that DeepSpeed fills."""


def distill_worker(plan: DistillPlan) -> dict[str, float]:
    """The last step's metrics and, where it was chosen, whose the weights are; worker 0 leaves the trained student in `plan.output`.

    Raises:
        NotFinite: a loss or gradient is NaN or infinite; every worker raises it, at the same step.
        CorruptArtifact: there are checkpoints, and all are damaged.
    """
    config = plan.config
    worker, num_workers = dist.get_rank(), dist.get_world_size()
    rows = read_rows(plan.rows)
    checkpoint = agree_on_newest(plan.checkpoints)
    resized = checkpoint is not None and workers_of(checkpoint) != num_workers
    engine = _engine(config, plan.student, universal=resized)
    first_step = _resume(engine, checkpoint, resized) if checkpoint else 0
    progress = _start_progress(plan, engine, first_step) if worker == 0 else None
    validation, notice = open_validation(plan), Notice(config.spot, plan.checkpoints.with_name(STOP))
    if validation and not first_step:
        validation.ask(engine.module.model, 0)
    for step, batch in enumerate(batches(rows.lengths, config.batch, config.seed, first_step, plan.num_steps), first_step + 1):
        for group in engine.optimizer.param_groups:
            group["lr"] = learning_rate(step, plan.num_steps, config)
        metrics = _step(engine, rows, batch, share(batch, worker, num_workers, config.micro_batch), config)
        if validation and validation.due(step):
            metrics |= validation.ask(engine.module.model, step)
        if progress:
            progress.log({**metrics, "learning_rate": learning_rate(step, plan.num_steps, config)}, step)
        ends = notice.came()
        if (ends or step % config.checkpoint_every_steps == 0) and step < plan.num_steps:
            _checkpoint(engine, checkpoint_folder(plan.checkpoints, step), step, metrics)
            if ends:
                notice.wait_for_the_end()
    if progress:
        progress.close()
    return metrics | publish(engine.module.model, validation, plan.output, config.zero_stage)


class Progress:
    """Writes every step's metrics and, now and then, a line with the time left."""

    def __init__(self, tracker: Tracker, first_step: int, num_steps: int, config: DistillConfig, parameters: int) -> None:
        self._tracker = tracker
        self._first_step = first_step
        self._num_steps = num_steps
        self._every = config.log_every_steps
        self._terms = list(config.losses.weights())
        peak = config.peak_teraflops
        self._peak_tokens = dist.get_world_size() * peak * 1e12 / (6 * parameters) if peak else None
        self._started = self._last = time.monotonic()

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Record a step that has just ended."""
        now = time.monotonic()
        seconds, self._last = now - self._last - metrics.get(SECONDS, 0), now
        metrics = {**metrics, "seconds": round(seconds, 4), "tokens_per_second": round(metrics["tokens"] / seconds, 1)}
        if self._peak_tokens:
            metrics["fraction_of_peak"] = round(metrics["tokens"] / seconds / self._peak_tokens, 6)
        self._tracker.log(metrics, step)
        if step % self._every == 0 or step == self._num_steps:
            left = (now - self._started) / (step - self._first_step) * (self._num_steps - step)
            terms = ", ".join(f"{name} {metrics[name]:.4f}" for name in (*self._terms, ENTROPY))
            line = "step %d/%d: loss %.4f (%s), %.0f tokens/s, %.0f s left"
            log.info(line, step, self._num_steps, metrics["loss"], terms, metrics["tokens_per_second"], left)

    def close(self) -> None:
        """Close the trackers."""
        self._tracker.close()


def _start_progress(plan: DistillPlan, engine: Any, first_step: int) -> Progress:
    trackers = resume_trackers(plan.config.trackers, plan.output, first_step, plan.num_steps)
    parameters = sum(getattr(weights, "ds_numel", weights.numel()) for weights in engine.module.model.parameters())  # ZeRO 3 has parts
    return Progress(trackers, first_step, plan.num_steps, plan.config, parameters)


def _engine(config: DistillConfig, student: Path, universal: bool) -> Any:
    prepare_deepspeed()
    disable_progress_bar()  # type: ignore[no-untyped-call]
    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.bfloat16, attn_implementation=config.attention)
    add_lora(model, config.lora)
    round_layers(model, config.quantization_aware)
    model.config.use_cache = False
    settings = {
        "train_batch_size": config.batch,
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "bf16": {"enabled": True},
        **zero_settings(config),
        "gradient_clipping": config.gradient_clip,
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": config.learning_rate, "weight_decay": config.weight_decay, "torch_adam": True},
        },
        "steps_per_print": 10**9,
        "checkpoint": {"load_universal": universal},
    }
    if config.line_tokens is not None:
        check_boundaries(model)
    student_loss = StudentLoss(model, objective_of(config))
    trained = [weights for weights in student_loss.parameters() if weights.requires_grad]
    engine, *_ = deepspeed.initialize(model=student_loss, model_parameters=trained, config=settings)
    engine.train()
    return engine


def _step(engine: Any, rows: PackedRows, batch: Rows, micro_batches: list[Rows], config: DistillConfig) -> dict[str, float]:
    """One optimizer update. Each loss term is the mean over its tokens in the whole batch, on all workers."""
    weights, names = config.losses.weights(), objective_of(config).sums
    everywhere, taught = rows.completion_tokens(batch), max(1, rows.teacher_tokens(batch))
    counts = {name: everywhere if name in ("cross_entropy", ENTROPY) else taught for name in names}
    # DeepSpeed divides by the number of workers and of micro batches; our sums are over tokens, so that is taken back
    scale = dist.get_world_size() * len(micro_batches)
    sums = torch.zeros(len(names), device=engine.device)
    for own in micro_batches:
        micro = collate(rows, own, config.line_tokens).to(engine.device)
        loss, micro_sums = engine(batch=micro, scales=[weight / counts[name] for name, weight in weights.items()])
        sums += micro_sums
        engine.backward(loss * scale)
        engine.step()
    dist.all_reduce(sums)
    means = {name: total / counts[name] for name, total in zip(names, sums.tolist(), strict=True)}
    metrics = {
        "loss": sum(weight * means[name] for name, weight in weights.items()),
        **means,
        "gradient_norm": float(engine.get_global_grad_norm()),
        "tokens": int(rows.lengths[batch].sum()),
    }
    check_finite(metrics, "rollouts", [rows.rollout_ids[row] for row in batch])
    return metrics


def _checkpoint(engine: Any, folder: Path, step: int, metrics: dict[str, float]) -> None:
    """Write a checkpoint with all workers, seal it and report it to Ray Train, which keeps the last two."""
    if dist.get_rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
    dist.barrier()
    engine.save_checkpoint(folder, tag=STATE, save_latest=False)
    dist.barrier()
    if dist.get_rank() == 0:
        seal(folder, step, dist.get_world_size())
    ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder), checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD)


def _resume(engine: Any, checkpoint: Path, resized: bool) -> int:
    """Steps already done, after loading a checkpoint; one of another number of workers is made to fit first."""
    if resized:
        engine.load_checkpoint(make_universal(checkpoint / STATE, checkpoint.parent.parent / "universal"), tag=STATE)
    else:
        engine.load_checkpoint(checkpoint, tag=STATE)
    written = f", written by {workers_of(checkpoint)} workers" if resized else ""
    log.info("going on after step %d, from %s%s", step_of(checkpoint), checkpoint, written)
    return step_of(checkpoint)
