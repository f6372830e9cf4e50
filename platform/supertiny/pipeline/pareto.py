"""The Pareto table of a run: formats and shapes by quality, cost, bytes and speed, and which to serve."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from supertiny.artifacts import Artifact, make, open_artifact
from supertiny.compress.pareto import Row, dominated_by, explain, render
from supertiny.compress.speed import Speed, measure_speed, median_speed
from supertiny.errors import ConfigError, MissingInput
from supertiny.evaluate.choose import best
from supertiny.evaluate.judge import choose as choose_prompts
from supertiny.evaluate.judge import read_predictions
from supertiny.evaluate.report import EVALUATION, published_in, versions
from supertiny.evaluate.schema import EvaluationMetrics
from supertiny.fresh import set_aside_stale
from supertiny.pipeline.pareto_config import ParetoConfig
from supertiny.tasks.base import load_task

TABLE = "table.md"
BATCHES = (1, 8, 32)
log = logging.getLogger(__name__)


def pareto(config: ParetoConfig) -> Artifact:
    """The table as `table.md` and as rows in the manifest, with the choice and why. Engines are built in this process, in turns;
    `run_at_place` finds it a node.

    Raises:
        ConfigError: an evaluation is of a whole teacher pipeline, of a model that was made again since, or of other prompts than the
            others; the chosen model is not among them.
        MissingInput: an evaluation or its model is not there.
    """
    evaluations = {name: open_artifact(EVALUATION + name, config.run_root, "evaluation") for name in config.models or evaluated(config)}
    models = {name: open_artifact(each.manifest.parents["model"].uri, config.run_root, "model") for name, each in evaluations.items()}
    check_same(models, evaluations)
    chosen, why = choose(config, evaluations)
    parents = {**models, **{EVALUATION + name: each for name, each in evaluations.items()}}
    set_aside_stale(config, parents)

    def build(folder: Path) -> dict[str, Any]:
        speeds = measure(config, models)
        rows = [_row(name, models[name], evaluations[name], speeds[name]) for name in models]
        said, basis = explain(rows, chosen, why), describe_measurement(config)
        (folder / TABLE).write_text(render(rows, chosen, [said, basis]), encoding="utf-8")
        log.info("%s", said)
        return {
            "model": chosen,
            "why": said,
            "measured": basis,
            "rows": [row.model_dump(mode="json") for row in rows],
            "dominated": {row.name: by for row in rows if (by := dominated_by(row, rows))},
        }

    return make(config, "pareto", parents, build)


def evaluated(config: ParetoConfig) -> list[str]:
    """Every evaluated student of the run, oldest first; raises MissingInput where there is none."""
    published = published_in(Path(config.run_root).expanduser().absolute())
    students = [each for each in published.values() if each.kind == "evaluation" and each.metrics["system"] == "student"]
    if not students:
        raise MissingInput(f"{config.run_root}: no student was evaluated there, so there is nothing to compare")
    return [each.name.removeprefix(EVALUATION) for each in students]


def check_same(models: Mapping[str, Artifact], evaluations: Mapping[str, Artifact]) -> None:
    """Check that every evaluation is of a student as it is now, and that all asked the same prompts; raises ConfigError."""
    for name, evaluation in evaluations.items():
        if evaluation.manifest.metrics["system"] != "student":
            raise ConfigError(f"{evaluation.manifest.name} is of a whole teacher pipeline; the table has single models, asked directly")
        if evaluation.manifest.parents["model"].sha256 != models[name].as_parent().sha256:
            raise ConfigError(f"{evaluation.path} is not of {models[name].path} as it is now; evaluate it again")
    asked = {name: {row.prompt_id for row in read_predictions(each)} for name, each in evaluations.items()}
    first, *others = asked
    for name in others:
        if alone := asked[first] ^ asked[name]:
            raise ConfigError(
                f"eval-{first} and eval-{name} asked different prompts: {len(alone)} are in one alone, such as {min(alone)}; evaluate all "
                "with the same task, split and num_prompts"
            )


def choose(config: ParetoConfig, evaluations: Mapping[str, Artifact]) -> tuple[str, str]:
    """Name of the model to mark, and why: the config's, else the best; raises ConfigError where the config's is not there."""
    if config.chosen is None:
        chosen = best(list(evaluations.values()))
        return chosen.evaluation.manifest.name.removeprefix(EVALUATION), chosen.why
    if config.chosen not in evaluations:
        raise ConfigError(f"chosen {config.chosen} is none of the compared models: {', '.join(evaluations)}")
    return config.chosen, config.why or "it was named"


def measure(config: ParetoConfig, models: Mapping[str, Artifact]) -> dict[str, Speed]:
    """Every model's speed, median of `rounds` in turns, so that what else the machine does meets all alike."""
    task = load_task(config.task)
    prompts = choose_prompts(task.prompts(config.split), config.num_prompts, config.split)
    runs: dict[str, list[Speed]] = {name: [] for name in models}
    for number in range(1, config.rounds + 1):
        for name, model in models.items():
            log.info("%s: measuring %s, round %d of %d", config.name, name, number, config.rounds)
            runs[name].append(measure_speed(model.path, prompts, task.tools, config.engine, config.max_tokens, BATCHES))
    return {name: median_speed(each) for name, each in runs.items()}


def describe_measurement(config: ParetoConfig) -> str:
    """What the speeds are of, in one sentence."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"a CPU, {len(os.sched_getaffinity(0))} cores"
    how = f"median of {config.rounds} runs in turns" if config.rounds > 1 else "one run"
    asked = f"{config.num_prompts} prompts, answers of at most {config.max_tokens} tokens"
    return f"Speeds: {how}, {asked}, vLLM {versions()['vllm']} on {device}, {time.strftime('%Y-%m-%d', time.gmtime())}."


def _row(name: str, model: Artifact, evaluation: Artifact, speed: Speed) -> Row:
    metrics = EvaluationMetrics.model_validate(evaluation.manifest.metrics)
    made = model.manifest.metrics
    return Row(
        name=name,
        format=made.get("format", "bfloat16"),
        parameters=metrics.parameters,
        bytes=metrics.bytes,
        quality=metrics.exact_match.value,
        quality_low=metrics.exact_match.low,
        quality_high=metrics.exact_match.high,
        usd_per_thousand_correct=metrics.usd_per_thousand_correct,
        seconds_per_token=speed.seconds_per_token,
        tokens_per_second=speed.tokens_per_second,
        kl_nats=made.get("kl_nats"),
    )
