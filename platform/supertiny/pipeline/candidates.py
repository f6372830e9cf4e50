"""Which model goes before the gate: of the healed one and its quantized ones the best, trained through its rounding where it loses much."""

from __future__ import annotations

from supertiny.artifacts import Artifact, open_artifact
from supertiny.evaluate.choose import best
from supertiny.evaluate.gate import compare, pair
from supertiny.evaluate.judge import read_predictions
from supertiny.pipeline.config import PipelineConfig
from supertiny.pipeline.recover import Stages, our_stages, recover
from supertiny.pipeline.recover_config import RecoverConfig
from supertiny.train.quantization_config import QuantizationAwareSettings


def choose_candidate(config: PipelineConfig, stages: Stages | None = None) -> Artifact:
    """The evaluation of the model for the gate. Whatever `heal` made is healed on, and every candidate made of it and evaluated.

    A quantized candidate is measured as the gate will measure it before it goes there, so that there is one gate, of what went on.

    Args:
        stages: ours where they are left out.
    """
    stages = stages or our_stages()
    healed = recover(config.recover, stages).manifest.metrics["model"]
    evaluations = {}
    for section in config.candidates:
        model = healed
        if section != "heal":
            model = getattr(config, section).name
            stages.quantize(getattr(config, section).model_copy(update={"student": healed}))
        evaluations[section] = stages.evaluate(config.evaluate.of(model))
    passing = [each for each in evaluations.values() if would_pass(config, each)]
    chosen = best(passing or list(evaluations.values()))
    section = next(section for section, each in evaluations.items() if each is chosen)
    if section == "heal":
        return chosen
    aware = recover(through_its_rounding(config, section, healed), stages)
    return stages.evaluate(config.evaluate.of(aware.manifest.metrics["model"]))


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
