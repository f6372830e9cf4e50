"""Healing until it is enough: distill, evaluate, compare with the uncut model, and again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from supertiny.artifacts import Artifact, make, open_artifact
from supertiny.compress.config import QuantizeConfig
from supertiny.evaluate.config import EvaluateConfig, GateConfig
from supertiny.evaluate.fresh import set_aside_stale
from supertiny.evaluate.gate import compare, pair
from supertiny.evaluate.judge import read_predictions
from supertiny.evaluate.schema import Round
from supertiny.pipeline.recover_config import RecoverConfig
from supertiny.train.config import DistillConfig

log = logging.getLogger(__name__)
Distill = Callable[[DistillConfig], Artifact]
Evaluate = Callable[[EvaluateConfig], Artifact]
Quantize = Callable[[QuantizeConfig], Artifact]


class Stages(NamedTuple):
    """What makes a round; other ones in tests."""

    distill: Distill
    evaluate: Evaluate
    quantize: Quantize


def recover(config: RecoverConfig, stages: Stages | None = None) -> Artifact:
    """Every `Round` in a manifest, why it ended (`enough`, or a spent budget of rounds or tokens), and the best round's `model`.

    Args:
        stages: ours where they are left out.

    Raises:
        MissingInput: the cut model or the uncut model's evaluation is not there.
        ConfigError: the baseline was evaluated on other prompts, or too few.
    """
    baseline = open_artifact(config.baseline, config.run_root, "evaluation")
    cut = open_artifact(config.heal.student, config.run_root, "model")
    set_aside_stale(config, {"student": cut, "baseline": baseline})

    def build(_: Path) -> Mapping[str, Any]:
        rounds = heal_until_enough(config, baseline, stages or our_stages())
        ended = why_ended(rounds, config)
        best = rounds[-1] if ended == "enough" else max(rounds, key=lambda each: each.exact_match)
        log.info("%s: %s", config.name, describe(best, config.baseline, ended))
        return {"rounds": [each.model_dump(mode="json") for each in rounds], "ended": ended, "model": best.model}

    return make(config, "recovery", {"student": cut, "baseline": baseline}, build)


def heal_until_enough(config: RecoverConfig, baseline: Artifact, stages: Stages) -> list[Round]:
    """The cut model's round 0 and those that healing took."""
    student = config.heal.student
    rounds = [_measure(config, baseline, _quantized(config, student, 0, stages), 0, stages)]
    while why_ended(rounds, config) is None:
        number = len(rounds)
        healed = f"{config.heal.name}-{number}"
        stage = config.heal.model_copy(update={"name": healed, "student": student, "seed": config.heal.seed + number})
        tokens = rounds[-1].tokens + int(stages.distill(stage).manifest.metrics["tokens"])
        student = healed
        rounds.append(_measure(config, baseline, _quantized(config, student, number, stages), tokens, stages))
        log.info("%s: %s", config.name, describe(rounds[-1], config.baseline, None))
    return rounds


def _quantized(config: RecoverConfig, student: str, number: int, stages: Stages) -> str:
    """Name of what is measured: the student, or what quantizing makes of it."""
    if config.quantize is None:
        return student
    name = f"{config.quantize.name}-{number}" if number else config.quantize.name
    rounding = {"rounding": "nearest", "num_scales": None, "smoothing_strength": None} if number else {}
    stages.quantize(config.quantize.model_copy(update={"name": name, "student": student, **rounding}))
    return name


def why_ended(rounds: list[Round], config: RecoverConfig) -> str | None:
    """`enough`, `rounds` or `tokens`; None where another round is due."""
    if rounds[-1].verdict == "pass":
        return "enough"
    if len(rounds) > config.max_rounds:
        return "rounds"
    of_a_round = rounds[-1].tokens - rounds[-2].tokens if len(rounds) > 1 else 0
    return "tokens" if rounds[-1].tokens + of_a_round > config.max_tokens else None


def describe(of: Round, baseline: str, ended: str | None) -> str:
    """One line for the log."""
    gap = of.difference
    points = f"{100 * gap.value:+.1f} points [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}] from {baseline}"
    return f"{of.model}: {100 * of.exact_match:.1f} % after {of.tokens:,} tokens, {points}{f'; ended: {ended}' if ended else ''}"


def _measure(config: RecoverConfig, baseline: Artifact, model: str, tokens: int, stages: Stages) -> Round:
    evaluation = stages.evaluate(config.evaluate.of(model))
    gate = GateConfig(
        candidate=evaluation.manifest.name,
        baseline=config.baseline,
        margin=config.margin,
        confidence=config.confidence,
        min_prompts=config.min_prompts,
    )
    found = compare(evaluation, baseline, pair(read_predictions(evaluation), read_predictions(baseline), gate), gate)
    quality = found.candidate.exact_match.value
    return Round(model=model, tokens=tokens, exact_match=quality, difference=found.difference, verdict=found.verdict)


def our_stages() -> Stages:
    """Those of the jobs; they bring Ray and torch."""
    from supertiny.compress.quantize import quantize
    from supertiny.evaluate.suites import evaluate
    from supertiny.pipeline.place import run_at_place
    from supertiny.train.distill import distill

    return Stages(distill, evaluate, partial(run_at_place, quantize))
