"""Which model goes before the gate: of the healed one and its quantized ones the best, trained through its rounding where it loses much."""

from __future__ import annotations

import logging

from supertiny.artifacts import Artifact, find_parent, open_artifact
from supertiny.evaluate.gate import compare, pair
from supertiny.evaluate.judge import read_predictions
from supertiny.evaluate.report import EVALUATION
from supertiny.pipeline.config import PipelineConfig
from supertiny.pipeline.recover import Stages, our_stages, recover
from supertiny.pipeline.recover_config import RecoverConfig
from supertiny.train.quantization_config import QuantizationAwareSettings

log = logging.getLogger(__name__)


def choose_candidate(config: PipelineConfig, stages: Stages | None = None) -> Artifact:
    """The evaluation of the model for the gate. Whatever `heal` made is healed on, and every candidate made of it and evaluated; the Pareto
    table chooses, and where it chose a quantized one that is trained through its rounding, a second table has the result.

    A quantized candidate is measured as the gate will measure it before it goes there, so that there is one gate, of what went on.

    Args:
        stages: ours where they are left out.
    """
    stages = stages or our_stages()
    healed = recover(config.recover, stages).manifest.metrics["model"]
    made = {section: _evaluated(config, section, healed, stages) for section in config.candidates}
    names = {section: each.manifest.name for section, each in made.items()}
    passing = [names[section] for section, each in made.items() if would_pass(config, each)]
    rows = tuple(dict.fromkeys([*uncut(config), EVALUATION + healed, *names.values()]))
    among = {"evaluations": rows, "candidates": tuple(passing or names.values()), "candidates_are": _describe(len(passing), len(made))}
    chosen = stages.compare(config.pareto.model_copy(update=among)).manifest.metrics["evaluation"]
    section = next(section for section, name in names.items() if name == chosen)
    if section == "heal":
        return made[section]
    aware = stages.evaluate(config.evaluate.of(recover(through_its_rounding(config, section, healed), stages).manifest.metrics["model"]))
    if (name := aware.manifest.name) not in rows:
        why = f"{section} after training through its rounding, without which it would not pass the gate"
        again = {"name": config.pareto_aware, "evaluations": (*rows, name), "candidates": (name,), "candidates_are": why}
        stages.compare(config.pareto.model_copy(update=again))
    return aware


def _describe(num_passing: int, num_made: int) -> str:
    if num_made == 1:
        return "the only candidate"
    if num_passing == 0:
        return f"{num_made} candidates, none of which would pass the gate,"
    if num_passing == num_made:
        return f"{num_made} candidates, all of which would pass the gate,"
    which = "only one" if num_passing == 1 else str(num_passing)
    return f"the {which} of {num_made} candidates that would pass the gate"


def uncut(config: PipelineConfig) -> tuple[str, ...]:
    """The evaluation of the student before the cut, if the table can have it: it may be a teacher pipeline's, or its model gone."""
    baseline = open_artifact(config.recover.baseline, config.run_root, "evaluation")
    there = find_parent(baseline.manifest.parents["model"], str(baseline.path.parent)) is not None
    if there and baseline.manifest.metrics["system"] == "student":
        return (config.recover.baseline,)
    log.warning("%s: not in the Pareto table: %s", baseline.path, "a whole teacher pipeline" if there else "its model is gone")
    return ()


def _evaluated(config: PipelineConfig, section: str, healed: str, stages: Stages) -> Artifact:
    """A candidate, made of the healed model, and evaluated."""
    if section == "heal":
        return stages.evaluate(config.evaluate.of(healed))
    stages.quantize(getattr(config, section).model_copy(update={"student": healed}))
    return stages.evaluate(config.evaluate.of(getattr(config, section).name))


def would_pass(config: PipelineConfig, evaluation: Artifact) -> bool:
    """Whether the gate would let a model through."""
    gate = config.gate.model_copy(update={"candidate": evaluation.manifest.name})
    baseline = open_artifact(gate.baseline, config.run_root, "evaluation")
    paired = pair(read_predictions(evaluation), read_predictions(baseline), gate)
    return compare(evaluation, baseline, paired, gate).verdict == "pass"


def through_its_rounding(config: PipelineConfig, section: str, student: str) -> RecoverConfig:
    """`aware`, for the candidate that a section quantized from a student."""
    quantize = getattr(config, section).model_copy(update={"student": student})
    aware = QuantizationAwareSettings(format=quantize.format, group_size=quantize.group_size)
    heal = config.aware.heal.model_copy(update={"student": student, "quantization_aware": aware})
    return config.aware.model_copy(update={"heal": heal, "quantize": quantize})
