"""Distillation: the accepted rollouts and the teacher's distribution over them, taught to a student."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from supertiny.artifacts import Artifact, make, open_artifact
from supertiny.errors import ConfigError
from supertiny.rollout_table import read_rollouts
from supertiny.tracking import check_trackers
from supertiny.train.batching import num_steps
from supertiny.train.checkpoints import newest_good
from supertiny.train.config import DistillConfig, TrainConfig
from supertiny.train.metrics import read_metrics
from supertiny.train.objective import check_teacher
from supertiny.train.packing import PackedRows, pack, write_rows
from supertiny.train.plan import DistillPlan
from supertiny.train.students import carry_over, model_size, open_tokenizer
from supertiny.train.workers import check_fits, checkpoints_in, connect, run_workers

log = logging.getLogger(__name__)


def distill(config: DistillConfig) -> Artifact:
    """The trained student: a model artifact with the metrics of every step.

    Raises:
        MissingInput: the student or the rollouts are not there.
        CorruptArtifact: either is damaged, they do not share a tokenizer, or every checkpoint of a killed run is damaged.
        ConfigError: a tracker is not installed, no row is short enough for `max_tokens`, no row has the teacher's top-k that a loss term
            takes, or the student's head is of an unusual kind.
        PlanTooBig: the cluster has fewer CPUs than workers.
        NotFinite: the loss or the gradient became NaN or infinite.
    """
    check_trackers(config.trackers)
    student = open_student(config)
    rollouts = open_artifact(config.rollouts, config.run_root, "rollouts")
    return make(config, "model", {"student": student, "rollouts": rollouts}, lambda folder: _train(config, student, rollouts, folder))


def open_student(config: TrainConfig) -> Artifact:
    """The model to start from, its files checked; raises MissingInput or CorruptArtifact."""
    return open_artifact(config.student, config.run_root, "model")


def _train(config: DistillConfig, student: Artifact, rollouts: Artifact, folder: Path) -> Mapping[str, Any]:
    table = read_rollouts(rollouts.path)
    rows = pack(table, open_tokenizer(student.path), config.max_tokens)
    if not rows.rollout_ids:
        raise ConfigError(f"none of the {len(table)} rollouts in {rollouts.path} has at most {config.max_tokens} tokens; raise max_tokens")
    check_teacher(config, rows, rollouts.path)
    newest_good(checkpoints_in(folder))
    connect()
    check_fits(config.num_workers)
    working = folder / ".train"
    write_rows(rows, working / "rows")
    plan = DistillPlan(
        config=config,
        student=student.path,
        rows=working / "rows",
        num_steps=num_steps(len(rows.rollout_ids), config.batch, config.epochs),
        checkpoints=checkpoints_in(folder),
        output=folder,
    )
    left_out = len(table) - len(rows.rollout_ids)
    log.info("%s: %d rows, %d left out as too long, %d steps", config.name, len(rows.rollout_ids), left_out, plan.num_steps)
    last = run_workers("supertiny.train.loop:distill_worker", plan, config, folder)
    carry_over(student.path, folder)
    shutil.rmtree(working)
    return {**model_size(folder), **_summary(last, list(config.losses.weights()), rows, left_out, plan.num_steps, folder)}


def _summary(last: Mapping[str, float], terms: list[str], rows: PackedRows, left_out: int, steps: int, folder: Path) -> dict[str, Any]:
    history = read_metrics(folder / "metrics.jsonl")
    return {
        "rows": len(rows.rollout_ids),
        "rows_too_long": left_out,
        "steps": steps,
        "tokens": sum(step["tokens"] for step in history),
        "loss_first": history[0]["loss"],
        "loss_last": last["loss"],
        **{f"{name}_last": last[name] for name in terms},
        "training_seconds": round(sum(step["seconds"] for step in history), 3),
    }
