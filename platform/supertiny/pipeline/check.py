"""What would fail a stage after the work of those before it, found before the first."""

from __future__ import annotations

import logging

import ray

from supertiny.artifacts import open_artifact
from supertiny.cost import machine_price
from supertiny.evaluate.judge import choose
from supertiny.pipeline.config import PipelineConfig
from supertiny.rollout.pipeline import check_fits as check_rollout_fits
from supertiny.tasks.base import load_task
from supertiny.train.workers import check_fits as check_workers_fit

INPUTS = {"teacher": "model", "student": "model", "rollouts": "rollouts"}
"""Keys that name an artifact, and its kind."""


def check(config: PipelineConfig) -> None:
    """Look at every stage's inputs, tasks, prices and needs.

    Raises:
        MissingInput, CorruptArtifact: an artifact that a stage starts from, and that no stage before it makes.
        ConfigError: a task refuses its options, the split has too few prompts to evaluate, or the price table lacks the machine.
        PlanTooBig: the cluster is too small for a stage.
    """
    check_inputs(config)
    for section in (config.rollout, config.rl, config.evaluate):
        load_task(section.task)
    choose(load_task(config.evaluate.task).prompts(config.evaluate.split), config.evaluate.num_prompts, config.evaluate.split)
    machine_price(config.evaluate.machine, config.evaluate.prices)
    machine_price(config.rollout.cost.machine, config.rollout.cost.prices)
    if not ray.is_initialized():
        ray.init(logging_level=logging.WARNING)
    check_rollout_fits(config.rollout.layout, ray.cluster_resources())  # type: ignore[no-untyped-call]
    for stage in (config.distill, config.rl, config.heal):
        check_workers_fit(stage.num_workers)


def check_inputs(config: PipelineConfig) -> None:
    """Open every artifact that is named and not made in the chain before it is needed.

    Raises:
        MissingInput, CorruptArtifact: as `open_artifact`.
    """
    made = {section.name for section in (config.pretrain_teacher, config.pretrain_base) if section is not None}
    for model in {config.teacher, config.base, config.serve.teacher} - made:
        open_artifact(model, config.run_root, "model")
    for stage in (config.rollout, config.distill, config.rl, config.prune, config.heal, config.awq, config.w8a8):
        for key, kind in INPUTS.items():
            uri = getattr(stage, key, None)
            if uri is not None and uri not in made:
                open_artifact(uri, config.run_root, kind)
        made.add(stage.name)
