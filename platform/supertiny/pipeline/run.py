"""The chain from teacher to promoted student. Running it again makes only what is missing."""

from __future__ import annotations

import logging
from pathlib import Path

from supertiny.artifacts import Artifact, write_atomically
from supertiny.compress.parity import prove
from supertiny.compress.prune import prune
from supertiny.evaluate.config import PromoteConfig
from supertiny.evaluate.gate import gate
from supertiny.evaluate.promote import promote
from supertiny.evaluate.suites import evaluate
from supertiny.pipeline.candidates import choose_candidate
from supertiny.pipeline.check import check
from supertiny.pipeline.config import RUN_CONFIG, PipelineConfig
from supertiny.pipeline.place import run_at_place
from supertiny.pipeline.report import write_run_report
from supertiny.rollout.pipeline import rollout
from supertiny.train.config import RlConfig
from supertiny.train.distill import distill
from supertiny.train.pretrain import pretrain
from supertiny.train.rl import rl

log = logging.getLogger(__name__)


def run(config: PipelineConfig) -> Artifact:
    """The promoted model.

    Raises:
        GateNotPassed: the candidate is not surely good enough, or vLLM does not serve what was evaluated; everything made so far is kept,
            and the report says why.
    """
    check(config)
    write_atomically(Path(config.run_root).expanduser() / RUN_CONFIG, config.model_dump_json(indent=2))
    for section in (config.pretrain_teacher, config.pretrain_base):
        if section is not None:
            pretrain(section)
    rollout(config.rollout)
    evaluate_model(config, "teacher", config.teacher)
    evaluate_model(config, "base", config.base)
    for stage in config.transfers:
        rl(stage) if isinstance(stage, RlConfig) else distill(stage)
        evaluate_model(config, stage.name)
    run_at_place(prune, config.prune)
    evaluate_model(config, config.prune.name)
    distill(config.heal)
    evaluate_model(config, config.heal.name)
    candidate = choose_candidate(config)
    gate(config.gate.model_copy(update={"candidate": candidate.manifest.name}))
    try:
        promotion = prove_served(config, candidate)
    finally:
        write_run_report(config)
    return promote(promotion)


def prove_served(config: PipelineConfig, candidate: Artifact) -> PromoteConfig:
    """The promotion, asking for the candidate's parity proof, which is made where the candidate was evaluated."""
    stage = config.parity.model_copy(update={"model": candidate.manifest.parents["model"].uri, "rollouts": config.heal.rollouts})
    run_at_place(prove, stage)
    return config.promote.model_copy(update={"parity": stage.name})


def evaluate_model(config: PipelineConfig, stage: str, uri: str | None = None) -> Artifact:
    """A stage's evaluation, `eval-<stage>`: of the model that it published, or of the one at `uri`."""
    section = config.evaluate_teacher if stage == "teacher" else config.evaluate
    return evaluate(section.of(stage, uri))
