"""Which model goes before the gate: of the healed one and its quantized ones the best, trained through its rounding where it loses much."""

from __future__ import annotations

from typing import NamedTuple

from supertiny.artifacts import Artifact, open_artifact
from supertiny.evaluate.choose import best
from supertiny.evaluate.gate import compare, pair
from supertiny.evaluate.judge import read_predictions
from supertiny.pipeline.config import PipelineConfig
from supertiny.pipeline.recover import Stages, our_stages, recover
from supertiny.pipeline.recover_config import RecoverConfig
from supertiny.train.quantization_config import QuantizationAwareSettings


class Candidate(NamedTuple):
    """What goes before the gate."""

    evaluation: Artifact
    why: str
    """It does, in a few words."""
    compared: tuple[str, ...]
    """Names of what it was chosen from: what healing came to, the named candidates, and itself."""


def choose_candidate(config: PipelineConfig, stages: Stages | None = None) -> Candidate:
    """The model for the gate. Whatever `heal` made is healed on, and every candidate made of it and evaluated.

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
    chosen, why = best(passing or list(evaluations.values()))
    would = f"{len(passing)} of {len(evaluations)} candidates would pass the gate" if passing else "no candidate would pass the gate"
    why = f"{would}, and of {'these' if passing else 'all'} it is {why}"
    section = next(section for section, each in evaluations.items() if each is chosen)
    names = dict.fromkeys([healed, *(each.manifest.parents["model"].uri for each in evaluations.values())])
    if section == "heal":
        return Candidate(chosen, why, tuple(names))
    aware = recover(through_its_rounding(config, section, healed), stages).manifest.metrics["model"]
    if aware not in names:
        why = f"{why}, here after training through its rounding"
    return Candidate(stages.evaluate(config.evaluate.of(aware)), why, tuple(dict.fromkeys([*names, aware])))


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
