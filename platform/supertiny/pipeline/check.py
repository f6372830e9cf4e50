"""What would fail a stage after the work of those before it, found before the first."""

from __future__ import annotations

import logging

import ray

from supertiny.artifacts import open_artifact
from supertiny.compress.config import MIN_PROOF_ROWS
from supertiny.config import StageConfig
from supertiny.cost import machine_price
from supertiny.doctor.examine import refuse_strangers
from supertiny.errors import ConfigError
from supertiny.evaluate.judge import choose
from supertiny.pipeline.check_compression import check_compression
from supertiny.pipeline.config import PipelineConfig
from supertiny.pipeline.place import check_places
from supertiny.rollout.pipeline import check_fits as check_rollout_fits
from supertiny.tasks.base import load_task
from supertiny.tracking import check_trackers
from supertiny.train.config import DistillConfig
from supertiny.train.pretrain import tokenizer_texts
from supertiny.train.workers import check_fits as check_workers_fit

INPUTS = {"teacher": "model", "student": "model", "rollouts": "rollouts"}
"""Keys that name an artifact, and its kind."""


def check(config: PipelineConfig) -> None:
    """Look at every stage's inputs, tasks, prices and needs.

    Raises:
        MissingInput, CorruptArtifact: an artifact that a stage starts from, and that no stage before it makes.
        ConfigError: a task refuses its options, a split has too few prompts, the price table lacks the machine, or a tracker
            is not installed, a stage's image cannot be had in a job with uploaded files, or the compression as `check_compression`.
        PlanTooBig: the cluster is too small for a stage.
        OpenCluster: others reach its job server, and it asks them for no token.
    """
    check_inputs(config)
    check_compression(config)
    check_tasks(config)
    if not ray.is_initialized():
        ray.init(logging_level=logging.WARNING)
    refuse_strangers()
    check_rollout_fits(config.rollout.layout)
    check_places(config.placed)
    for stage in (*config.transfers, *config.healings):
        check_workers_fit(stage)
        check_trackers(stage.trackers)


def check_tasks(config: PipelineConfig) -> None:
    """Draw the prompts that are asked, and look the machines' prices up.

    Raises:
        ConfigError: a task refuses its options, has no such split or too few prompts in it, too few are rolled out for a proof, or the
            price table lacks a machine.
    """
    for section in (config.rollout, config.rl):
        load_task(section.task)
    if config.rollout.limit is not None and config.rollout.limit < MIN_PROOF_ROWS:
        raise ConfigError(
            f"rollout.limit {config.rollout.limit}: nothing is promoted without a proof, of {MIN_PROOF_ROWS} prompts at least"
        )
    for asking in (config.evaluate, config.pareto):
        choose(load_task(asking.task).prompts(asking.split), asking.num_prompts, asking.split)
    for priced in (config.evaluate, config.evaluate_teacher):
        machine_price(priced.machine, priced.prices)
    machine_price(config.rollout.cost.machine, config.rollout.cost.prices)


def check_inputs(config: PipelineConfig) -> None:
    """Open every artifact that is named and not made in the chain before it is needed.

    Raises:
        MissingInput, CorruptArtifact: as `open_artifact`.
        MissingInput, ConfigError: as `tokenizer_texts`.
    """
    pretrained = [section for section in (config.pretrain_teacher, config.pretrain_base) if section is not None]
    for section in pretrained:
        tokenizer_texts(section)
    made = {section.name for section in pretrained}
    for model in {config.teacher, config.base, config.serve.teacher} - made:
        open_artifact(model, config.run_root, "model")
    for stage in (config.rollout, *config.transfers, config.prune, *config.healings, *config.quantized):
        for uri, kind in inputs(stage):
            if uri not in made:
                open_artifact(uri, config.run_root, kind)
        made |= {stage.name, f"{stage.name}-rollouts"} if stage is config.prune else {stage.name}


def inputs(stage: StageConfig) -> list[tuple[str, str]]:
    """The artifacts that a stage's settings name, each with its kind."""
    named = [(getattr(stage, key), kind) for key, kind in INPUTS.items() if getattr(stage, key, None) is not None]
    if isinstance(stage, DistillConfig):
        named += [(uri, "rollouts") for uri in (stage.replay.rollouts if stage.replay else ())]
        named += [(stage.on_policy.teacher, "model")] if stage.on_policy else []
    return named
