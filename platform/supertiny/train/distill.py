"""Distillation: the accepted rollouts and the teacher's distribution over them, or over its own completions, taught to a student."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from supertiny.artifacts import Artifact, find_parent, make, open_artifact
from supertiny.errors import ConfigError
from supertiny.records import Rollout
from supertiny.rollout_table import iter_rollouts, read_rollouts
from supertiny.tasks.base import load_task
from supertiny.tracking import check_trackers
from supertiny.train.batching import num_steps
from supertiny.train.checkpoints import newest_good
from supertiny.train.config import DistillConfig, TrainConfig
from supertiny.train.draw import check_enough, run_draw
from supertiny.train.metrics import read_metrics
from supertiny.train.objective import check_teacher, takers
from supertiny.train.packing import check_teachers_tokens, check_tokens, pack
from supertiny.train.plan import DistillPlan
from supertiny.train.prompts import judgeable, render_prompts, split, write_prompts
from supertiny.train.replay import renamed, to_ask, with_replay
from supertiny.train.stopping import end_if_told
from supertiny.train.students import carry_over, check_same_tokenizer, model_size, open_tokenizer, vocabulary_size
from supertiny.train.workers import check_fits, checkpoints_in, run_workers

log = logging.getLogger(__name__)


def distill(config: DistillConfig) -> Artifact:
    """The trained student: a model artifact with the metrics of every step.

    Raises:
        MissingInput: the student, the rollouts or, on-policy, the teacher are not there.
        CorruptArtifact: one is damaged, rollouts and student do not share a tokenizer, or every checkpoint of a killed run is damaged.
        ConfigError: a tracker is not installed, no row is short enough for `max_tokens`, no row has the teacher's top-k that a loss term
            takes, the student's head is of an unusual kind, or, on-policy, teacher and student do not share a tokenizer.
        PlanTooBig: the cluster has fewer CPUs or GPUs than workers.
        NotFinite: the loss or the gradient became NaN or infinite.
        Stopped: the job got SIGTERM; the checkpoint is written or, where the last step was made, the model published.
    """
    check_trackers(config.trackers)
    student = open_student(config)
    parents = {"student": student, "rollouts": open_artifact(config.rollouts, config.run_root, "rollouts")}
    earlier = config.replay.rollouts if config.replay else ()
    parents |= {f"replay:{name}": open_artifact(name, config.run_root, "rollouts") for name in earlier}
    if config.validation:
        load_task(config.task)
    if config.on_policy is not None:
        parents["teacher"] = open_artifact(config.on_policy.teacher, config.run_root, "model")
        check_same_tokenizer(parents["teacher"].path, student.path)
    train = _train_off_policy if config.on_policy is None else _train_on_policy
    model = make(config, "model", parents, lambda folder: train(config, parents, folder))
    end_if_told()
    return model


def open_student(config: TrainConfig) -> Artifact:
    """The model to start from, its files checked; raises MissingInput or CorruptArtifact."""
    return open_artifact(config.student, config.run_root, "model")


def _read(config: DistillConfig, parents: Mapping[str, Artifact]) -> tuple[list[Rollout], list[Rollout]]:
    """The rollouts to train on, and those of the prompts that are kept out; replayed ones among both, by one share. None has the top-k."""
    rest, kept_out = split(read_rollouts(parents["rollouts"].path, top_k=False), config.validation)
    if config.replay is None:
        return rest, kept_out
    earlier = {
        name: split(read_rollouts(parents[f"replay:{name}"].path, top_k=False), config.validation) for name in config.replay.rollouts
    }
    train_on = with_replay(rest, {name: parts[0] for name, parts in earlier.items()}, config.replay.fraction, config.seed)
    ask = {name: to_ask(parts[1]) for name, parts in earlier.items()}
    return train_on, with_replay(to_ask(kept_out), ask, config.replay.fraction, config.seed) if kept_out else []


def _whole(chosen: Sequence[Rollout], config: DistillConfig, parents: Mapping[str, Artifact]) -> Iterator[Rollout]:
    """The chosen rollouts with the teacher's top-k, read part by part, those of an artifact in its own order."""
    ids = {rollout.rollout_id for rollout in chosen}
    yield from (rollout for rollout in iter_rollouts(parents["rollouts"].path) if rollout.rollout_id in ids)
    for name in config.replay.rollouts if config.replay else ():
        yield from (rollout for rollout in renamed(name, iter_rollouts(parents[f"replay:{name}"].path)) if rollout.rollout_id in ids)


def _train_off_policy(config: DistillConfig, parents: Mapping[str, Artifact], folder: Path) -> Mapping[str, Any]:
    student, rollouts = parents["student"].path, parents["rollouts"].path
    table, kept_out = _read(config, parents)
    tokenizer = open_tokenizer(student)
    working = folder / ".train"
    shutil.rmtree(working / "rows", ignore_errors=True)
    rows = pack(_whole(table, config, parents), tokenizer, config.max_tokens, working / "rows")
    if not rows.rollout_ids:
        raise ConfigError(f"none of the {len(table)} rollouts in {rollouts} has at most {config.max_tokens} tokens; raise max_tokens")
    check_tokens(rows, vocabulary_size(student), rollouts)
    for artifact in (parents[name] for name in parents if name == "rollouts" or name.startswith("replay:")):
        if takers(config) and (teacher := _teacher_of(artifact, config.run_root)) is not None:
            check_teachers_tokens(rows, tokenizer, open_tokenizer(teacher), artifact.path)
    check_teacher(config, rows, rollouts)
    if config.quantization_aware:
        from supertiny.train.fake_quantization import check_groups  # brings torch

        check_groups(student, config.quantization_aware)
    newest_good(checkpoints_in(folder))
    check_fits(config)
    plan = DistillPlan(
        config=config,
        student=student,
        rows=working / "rows",
        validation=write_prompts(working / "validation.jsonl", judgeable(render_prompts(kept_out, tokenizer))),
        num_steps=num_steps(len(rows.rollout_ids), config.batch, config.epochs),
        checkpoints=checkpoints_in(folder),
        output=folder,
    )
    left_out = len(table) - len(rows.rollout_ids)
    log.info("%s: %d rows, %d left out, %d steps", config.name, len(rows.rollout_ids), left_out, plan.num_steps)
    last = run_workers("supertiny.train.loop:distill_worker", plan, config, folder)
    carry_over(student, folder)
    shutil.rmtree(working)
    counts = {"rows": len(rows.rollout_ids), "rows_left_out": left_out, **_replayed(config, table)}
    return {**model_size(folder), **counts, **_summary(last, config, plan.num_steps, folder)}


def _teacher_of(rollouts: Artifact, run_root: str) -> Path | None:
    """The folder of the model that made the rollouts, where it is still at hand with its tokenizer; an endpoint's never is."""
    made_by = rollouts.manifest.parents.get("teacher")
    folder = find_parent(made_by, run_root) if made_by else None
    return folder if folder and (folder / "tokenizer.json").exists() else None


def _train_on_policy(config: DistillConfig, parents: Mapping[str, Artifact], folder: Path) -> Mapping[str, Any]:
    assert config.on_policy is not None
    student, rollouts = parents["student"].path, parents["rollouts"].path
    table, kept_out = _read(config, parents)
    tokenizer = open_tokenizer(student)
    longest = config.max_tokens - config.on_policy.max_completion_tokens
    every = render_prompts(table, tokenizer)
    prompts = [prompt for prompt in every if len(tokenizer(prompt.text)["input_ids"]) <= longest]
    check_enough(prompts, config.batch, "batch", rollouts)
    steps = num_steps(len(prompts), config.batch, config.epochs)
    log.info("%s: %d prompts, %d left out as too long, %d steps", config.name, len(prompts), len(every) - len(prompts), steps)
    validation = judgeable(render_prompts(kept_out, tokenizer))
    work, teacher = "supertiny.train.on_policy:on_policy_worker", parents["teacher"].path
    last = run_draw(work, config, student, teacher, prompts, validation, steps, folder)
    counts = {"prompts": len(prompts), "prompts_too_long": len(every) - len(prompts), **_replayed(config, table)}
    return {**model_size(folder), **counts, **_summary(last, config, steps, folder)}


def _replayed(config: DistillConfig, table: Sequence[Rollout]) -> dict[str, int]:
    """How many rollouts are earlier ones."""
    if config.replay is None:
        return {}
    names = tuple(f"{name}:" for name in config.replay.rollouts)
    return {"rollouts_replayed": sum(rollout.rollout_id.startswith(names) for rollout in table)}


def _summary(last: Mapping[str, float], config: DistillConfig, steps: int, folder: Path) -> dict[str, Any]:
    history = read_metrics(folder / "metrics.jsonl")
    return {
        "steps": steps,
        "tokens": sum(step["tokens"] for step in history),
        "loss_first": history[0]["loss"],
        "loss_last": last["loss"],
        **{f"{name}_last": last[name] for name in config.losses.weights()},
        **{name: value for name, value in last.items() if "best" in name},
        "training_seconds": round(sum(step["seconds"] for step in history), 3),
    }
