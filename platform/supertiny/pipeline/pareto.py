"""The Pareto table of a run: formats and shapes by quality, bytes and speed, and which to serve."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from supertiny.artifacts import Artifact, make, open_artifact
from supertiny.compress.pareto import Row, choose, dominated_by, explain, render
from supertiny.compress.speed import Speed, measure_speed
from supertiny.errors import ConfigError
from supertiny.evaluate.judge import choose as choose_prompts
from supertiny.evaluate.judge import read_predictions
from supertiny.evaluate.schema import EvaluationMetrics
from supertiny.pipeline.pareto_config import ParetoConfig
from supertiny.records import Prompt
from supertiny.tasks.base import Task, load_task

TABLE = "table.md"
BATCHES = (1, 8, 32)
log = logging.getLogger(__name__)


def pareto(config: ParetoConfig) -> Artifact:
    """The table as `table.md` and as rows in the manifest, with the choice and why. Engines are built in this process, in turn;
    `run_at_place` finds it a node.

    Raises:
        ConfigError: an evaluation is of another model than the one of its name, or of other prompts than the others.
        MissingInput: a model or its evaluation is not there.
    """
    models = {name: open_artifact(name, config.run_root, "model") for name in config.models}
    evaluations = {name: open_artifact(f"eval-{name}", config.run_root, "evaluation") for name in config.models}
    check_same(models, evaluations)

    def build(folder: Path) -> dict[str, Any]:
        task = load_task(config.task)
        prompts = choose_prompts(task.prompts(config.split), config.num_prompts, config.split)
        rows = [_row(models[name], evaluations[name], _speed(config, models[name], task, prompts)) for name in config.models]
        (folder / TABLE).write_text(render(rows, config.margin))
        log.info("%s", explain(rows, config.margin))
        return {
            "chosen": choose(rows, config.margin).name,
            "why": explain(rows, config.margin),
            "rows": [row.model_dump(mode="json") for row in rows],
            "dominated": {row.name: by for row in rows if (by := dominated_by(row, rows))},
        }

    return make(config, "pareto", {**models, **{f"eval-{name}": each for name, each in evaluations.items()}}, build)


def check_same(models: dict[str, Artifact], evaluations: dict[str, Artifact]) -> None:
    """Check that every evaluation is of its model as it is now, and that all asked the same prompts; raises ConfigError."""
    for name, evaluation in evaluations.items():
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


def _speed(config: ParetoConfig, model: Artifact, task: Task, prompts: Sequence[Prompt]) -> Speed:
    log.info("%s: measuring %s", config.name, model.manifest.name)
    return measure_speed(model.path, prompts, task.tools, config.engine, config.max_tokens, BATCHES)


def _row(model: Artifact, evaluation: Artifact, speed: Speed) -> Row:
    metrics = EvaluationMetrics.model_validate(evaluation.manifest.metrics)
    made = model.manifest.metrics
    return Row(
        name=model.manifest.name,
        format=made.get("format", "bfloat16"),
        parameters=metrics.parameters,
        bytes=metrics.bytes,
        quality=metrics.exact_match.value,
        quality_low=metrics.exact_match.low,
        quality_high=metrics.exact_match.high,
        seconds_per_token=speed.seconds_per_token,
        tokens_per_second=speed.tokens_per_second,
        kl_nats=made.get("kl_nats"),
    )
