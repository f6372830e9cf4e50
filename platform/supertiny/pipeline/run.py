"""The chain from teacher to promoted student. Running it again makes only what is missing."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import ray

from supertiny.artifacts import Artifact, open_artifact, write_atomically
from supertiny.compress.prune import prune
from supertiny.compress.quantize import quantize
from supertiny.cost import machine_price
from supertiny.doctor.examine import refuse_strangers
from supertiny.evaluate.choose import better
from supertiny.evaluate.gate import gate
from supertiny.evaluate.promote import promote
from supertiny.evaluate.suites import evaluate
from supertiny.pipeline.config import RUN_CONFIG, PipelineConfig
from supertiny.pipeline.report import write_run_report
from supertiny.rollout.pipeline import check_fits as check_rollout_fits
from supertiny.rollout.pipeline import rollout
from supertiny.tasks.base import load_task
from supertiny.tracking import check_trackers
from supertiny.train.config import DistillConfig, RlConfig
from supertiny.train.distill import distill
from supertiny.train.pretrain import pretrain
from supertiny.train.rl import rl
from supertiny.train.workers import check_fits as check_workers_fit

log = logging.getLogger(__name__)


def run(config: PipelineConfig) -> Artifact:
    """The promoted model.

    Raises:
        GateNotPassed: the candidate is not surely good enough; everything made so far is kept, and the report says why.
    """
    check(config)
    write_atomically(Path(config.run_root).expanduser() / RUN_CONFIG, config.model_dump_json(indent=2))
    for section in (config.pretrain_teacher, config.pretrain_base):
        if section is not None:
            pretrain(section)
    rollout(config.rollout)
    evaluate_model(config, "teacher", config.teacher, "teacher")
    evaluate_model(config, "base", config.base)
    for stage in transfers(config):
        rl(stage) if isinstance(stage, RlConfig) else distill(stage)
        evaluate_model(config, stage.name)
    prune(config.prune)
    evaluate_model(config, config.prune.name)
    distill(config.heal)
    evaluate_model(config, config.heal.name)
    quantize(config.awq)
    quantize(config.w8a8)
    candidate = better(evaluate_model(config, config.awq.name), evaluate_model(config, config.w8a8.name))
    gate(config.gate.model_copy(update={"candidate": candidate.manifest.name}))
    write_run_report(config)
    return promote(config.promote)


def check(config: PipelineConfig) -> None:
    """Find now what would otherwise fail a stage after the work of those before it.

    Raises:
        MissingInput, CorruptArtifact: a model that the chain starts from.
        ConfigError: the task refuses its options, the price table lacks the machine, or a tracker is not installed.
        PlanTooBig: the cluster is too small for a stage.
        OpenCluster: others reach its job server, and it asks them for no token.
    """
    for model, made_here in ((config.teacher, config.pretrain_teacher), (config.base, config.pretrain_base)):
        if made_here is None:
            open_artifact(model, config.run_root, "model")
    for section in (config.rollout, config.rl, config.evaluate):
        load_task(section.task)
    for section in (config.evaluate, config.evaluate_teacher):
        machine_price(section.machine, section.prices)
    machine_price(config.rollout.cost.machine, config.rollout.cost.prices)
    if not ray.is_initialized():
        ray.init(logging_level=logging.WARNING)
    refuse_strangers()
    check_rollout_fits(config.rollout.layout)
    for stage in (*transfers(config), config.heal):
        check_workers_fit(stage)
        check_trackers(stage.trackers)


def transfers(config: PipelineConfig) -> list[DistillConfig | RlConfig]:
    """The stages of the curriculum, in their order."""
    return [getattr(config, section) for section in config.curriculum]


def evaluate_model(
    config: PipelineConfig, stage: str, uri: str | None = None, system: Literal["student", "teacher"] = "student"
) -> Artifact:
    """A stage's evaluation, `eval-<stage>`: of the model that it published, or of the one at `uri`."""
    section = config.evaluate_teacher if system == "teacher" else config.evaluate
    return evaluate(section.model_copy(update={"name": f"eval-{stage}", "model": uri or stage, "system": system}))
