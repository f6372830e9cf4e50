"""The evaluating stage: one system's quality, tokens, latency and cost on prompts that nothing was trained on."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

from supertiny.artifacts import Artifact, make, open_artifact
from supertiny.cost import machine_price, usd_per_thousand_correct
from supertiny.errors import CorruptArtifact
from supertiny.evaluate.actor import measure_in_actor
from supertiny.evaluate.config import EvaluateConfig
from supertiny.evaluate.judge import PREDICTIONS, Judged, choose, intervals, judge, latency, mean_argument_f1, tokens, write_predictions
from supertiny.evaluate.measure import Measurement
from supertiny.evaluate.schema import EvaluationMetrics, Phases
from supertiny.fresh import set_aside_stale
from supertiny.tasks.base import load_task

log = logging.getLogger(__name__)


def evaluate(config: EvaluateConfig) -> Artifact:
    """The model's evaluation: `predictions.parquet`, and `EvaluationMetrics` in the manifest.

    Raises:
        ConfigError: the split has too few prompts or no references, or the price table lacks the machine.
        MissingInput: there is no such model.
        PlanTooBig: the cluster can never place the evaluator.
    """
    model = open_artifact(config.model, config.run_root, "model")
    set_aside_stale(config, {"model": model})

    def build(folder: Path) -> dict[str, Any]:
        task = load_task(config.task)
        prompts = choose(task.prompts(config.split), config.num_prompts, config.split)
        machine_price(config.machine, config.prices)
        measured = measure_in_actor(model.path, config, prompts)
        rows = [judge(task, prompt, answer) for prompt, answer in zip(prompts, measured.answers, strict=True)]
        write_predictions(folder / PREDICTIONS, rows)
        metrics = summarize(config, model, rows, measured)
        log.info("%s: %s", config.name, describe(metrics))
        return metrics.model_dump(mode="json")

    return make(config, "evaluation", {"model": model}, build)


def summarize(config: EvaluateConfig, model: Artifact, rows: list[Judged], measured: Measurement) -> EvaluationMetrics:
    """The metrics of an evaluation from its rows and times."""
    exact_match, slices = intervals(rows)
    price = machine_price(config.machine, config.prices)
    seconds_each = measured.answer_seconds / len(rows)
    parameters, size = _size(model)
    return EvaluationMetrics(
        system=config.system,
        exact_match=exact_match,
        slices=slices,
        call_name_accuracy=fmean(row.call_name_right for row in rows),
        argument_f1=mean_argument_f1(rows),
        completion_tokens_mean=fmean(row.completion_tokens for row in rows),
        tokens=tokens(rows),
        reasons=dict(Counter(row.reason for row in rows if not row.exact_match).most_common()),
        latency_seconds=latency(measured.latencies),
        seconds_per_prompt=seconds_each,
        usd_per_thousand_correct=usd_per_thousand_correct(seconds_each, exact_match.value, price),
        price=price,
        concurrency=config.concurrency,
        parameters=parameters,
        bytes=size,
        seconds=Phases(engine=measured.engine_seconds, prompts=measured.answer_seconds, latency=sum(measured.latencies)),
    )


def describe(metrics: EvaluationMetrics) -> str:
    """One line for the log."""
    match, time = metrics.exact_match, metrics.latency_seconds
    slices = ", ".join(f"{name} {interval.value:.3f}" for name, interval in metrics.slices.items())
    return (
        f"exact match {match.value:.3f} [{match.low:.3f}, {match.high:.3f}] of {match.n} ({slices}); p50 {1000 * time.p50:.0f} ms, "
        f"p95 {1000 * time.p95:.0f} ms; {1 / metrics.seconds_per_prompt:.0f} prompts a second; "
        f"{metrics.completion_tokens_mean:.1f} tokens a prompt"
    )


def _size(model: Artifact) -> tuple[int, int]:
    metrics = model.manifest.metrics
    try:
        return int(metrics["parameters"]), int(metrics["bytes"])
    except KeyError as error:
        raise CorruptArtifact(
            f"{model.path}: its manifest has no metric {error}; the stage that made it counts parameters and bytes"
        ) from None
