"""Healing until it is enough: distill, evaluate, compare with the uncut model, and again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from supertiny.artifacts import Artifact, make, open_artifact
from supertiny.compress.config import QuantizeConfig
from supertiny.errors import ConfigError
from supertiny.evaluate.config import EvaluateConfig, GateConfig
from supertiny.evaluate.gate import compare, pair
from supertiny.evaluate.judge import choose, read_predictions
from supertiny.evaluate.schema import Round
from supertiny.fresh import CHOSEN, set_aside_stale
from supertiny.pipeline.pareto_config import ParetoConfig
from supertiny.pipeline.recover_config import RecoverConfig
from supertiny.tasks.base import load_task
from supertiny.train.config import DistillConfig

log = logging.getLogger(__name__)
Distill = Callable[[DistillConfig], Artifact]
Evaluate = Callable[[EvaluateConfig], Artifact]
Quantize = Callable[[QuantizeConfig], Artifact]
Compare = Callable[[ParetoConfig], Artifact]


class Stages(NamedTuple):
    """What makes a round, and the Pareto table of a chain's candidates; other ones in tests."""

    distill: Distill
    evaluate: Evaluate
    quantize: Quantize
    compare: Compare


def recover(config: RecoverConfig, stages: Stages | None = None) -> Artifact:
    """Every `Round` in a manifest, why it ended (`enough`, or a spent budget of rounds or tokens), and the best one's `model`.

    Args:
        stages: ours where they are left out.

    Raises:
        MissingInput: a model to start from or the uncut model's evaluation is not there.
        ConfigError: the baseline was evaluated on other prompts, or there is a `cut` and what to start from was not healed.
    """
    baseline = open_artifact(config.baseline, config.run_root, "evaluation")
    parents = {"student": open_artifact(config.heal.student, config.run_root, "model"), "baseline": baseline}
    if config.cut is not None:
        parents["cut"] = open_artifact(config.cut, config.run_root, "model")
    set_aside_stale(config, parents)

    def build(_: Path) -> Mapping[str, Any]:
        check_baseline(config, baseline)
        rounds = heal_until_enough(config, baseline, stages or our_stages())
        ended = why_ended(rounds, config)
        best = best_of(rounds)
        log.info("%s: %s", config.name, describe(best, config.baseline, ended))
        chosen = open_artifact(best.model, config.run_root, "model").as_parent(Path(config.run_root).expanduser().absolute())
        return {
            "rounds": [each.model_dump(mode="json") for each in rounds],
            "ended": ended,
            "model": best.model,
            CHOSEN: chosen.model_dump(mode="json"),
        }

    return make(config, "recovery", parents, build)


def check_baseline(config: RecoverConfig, baseline: Artifact) -> None:
    """Raise ConfigError, before anything is made, where the rounds would be asked other prompts than the baseline was."""
    section = config.evaluate
    prompts = choose(load_task(section.task).prompts(section.split), section.num_prompts, section.split)
    if alone := {row.prompt_id for row in read_predictions(baseline)} ^ {prompt.id for prompt in prompts}:
        raise ConfigError(
            f"{config.baseline} did not ask the prompts of `evaluate`: {len(alone)} are in one alone, such as {min(alone)}; "
            "evaluate it with the same task, split and num_prompts"
        )


def heal_until_enough(config: RecoverConfig, baseline: Artifact, stages: Stages) -> list[Round]:
    """What healing starts from and its rounds; before them the cut model, where it was healed before."""
    student, tokens, rounds = config.heal.student, 0, []
    if config.cut is not None:
        rounds = [_measure(config, baseline, config.cut, 0, stages)]
        tokens = training_tokens(open_artifact(student, config.run_root, "model"))
    rounds.append(_measure(config, baseline, _quantized(config, student, 0, stages), tokens, stages))
    while why_ended(rounds, config) is None:
        number = rounds_made(rounds, config) + 1
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
    if any(each.verdict == "pass" for each in rounds):
        return "enough"
    if rounds_made(rounds, config) >= config.max_rounds:
        return "rounds"
    of_a_round = rounds[-1].tokens - rounds[-2].tokens if len(rounds) > 1 else 0  # with a cut first the healing before
    return "tokens" if rounds[-1].tokens + of_a_round > config.max_tokens else None


def best_of(rounds: list[Round]) -> Round:
    """The most accurate of those that lose little enough, of all where none does; the first of equals. A cut that costs nothing may be."""
    enough = [each for each in rounds if each.verdict == "pass"]
    return max(enough or rounds, key=lambda each: each.exact_match)


def training_tokens(model: Artifact) -> int:
    """Of the healing that made a model; raises ConfigError where it was not healed."""
    if "tokens" not in model.manifest.metrics:
        raise ConfigError(f"{model.path} was not made by training, so no healing came before; leave `cut` out")
    return int(model.manifest.metrics["tokens"])


def rounds_made(rounds: list[Round], config: RecoverConfig) -> int:
    """Without what they start from."""
    return len(rounds) - 1 - (config.cut is not None)


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
    from supertiny.pipeline.pareto import pareto
    from supertiny.pipeline.place import run_at_place
    from supertiny.train.distill import distill

    return Stages(distill, evaluate, partial(run_at_place, quantize), partial(run_at_place, pareto))
