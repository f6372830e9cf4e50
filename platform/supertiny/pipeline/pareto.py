"""The Pareto table of a run: formats and shapes by quality, cost, bytes and speed, and which to serve."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from supertiny.artifacts import Artifact, make, open_artifact
from supertiny.compress.pareto import Row, dominated_by, explain, render
from supertiny.compress.speed import Speed, measure_speed, median_speed
from supertiny.cost import MachinePrice, usd_per_thousand_correct
from supertiny.errors import ConfigError, MissingInput, NoAnswer
from supertiny.evaluate.choose import best
from supertiny.evaluate.judge import choose as choose_prompts
from supertiny.evaluate.judge import read_predictions
from supertiny.evaluate.report import EVALUATION, published_in, versions
from supertiny.evaluate.schema import EvaluationMetrics
from supertiny.fresh import set_aside_stale
from supertiny.llm.devices import describe_devices
from supertiny.pipeline.pareto_config import BATCHES, ParetoConfig
from supertiny.tasks.base import load_task

TABLE = "table.md"
log = logging.getLogger(__name__)


def pareto(config: ParetoConfig) -> Artifact:
    """The table as `table.md` and as rows in the manifest, with the choice and why. Engines are built in this process, in turns;
    `run_at_place` finds it a node. A model that answers nothing is left out, and one
    that the engine does not take, where it is no candidate.

    A cost is that of the tokens that the evaluation's answers have, at the speed that is measured here with the most requests in flight,
    by the machine price of the first candidate's evaluation.

    Raises:
        ConfigError: an evaluation is of a whole teacher pipeline, of a model that was made again since, or of other prompts than the
            others.
        MissingInput: an evaluation or its model is not there.
        NoAnswer: none of the candidates answers anything.
    """
    by_uri = {uri: open_artifact(uri, config.run_root, "evaluation") for uri in config.evaluations or evaluated(config)}
    opened = {uri: open_model(each) for uri, each in by_uri.items()}
    names = row_names(by_uri, opened)
    evaluations, models = ({names[uri]: each[uri] for uri in names} for each in (by_uri, opened))
    candidates = [names[uri] for uri in config.candidates or by_uri]
    check_same(models, evaluations)
    parents = {**models, **{EVALUATION + name: each for name, each in evaluations.items()}}
    set_aside_stale(config, parents)

    def build(folder: Path) -> dict[str, Any]:
        speeds = measure(config, models, candidates)
        left = [name for name in candidates if name in speeds]
        if not left:
            raise NoAnswer(f"{', '.join(candidates)}: none of the candidates answered anything, so there is none to choose")
        price = EvaluationMetrics.model_validate(evaluations[left[0]].manifest.metrics).price
        rows = [_row(name, models[name], evaluations[name], speeds[name], price) for name in speeds]
        chosen, why = best({name: evaluations[name] for name in left}, {row.name: row.usd_per_thousand_correct for row in rows})
        said, basis = explain(rows, chosen, _reason(config, left, why)), describe_measurement(config, price)
        if out := [name for name in models if name not in speeds]:
            basis += f" Left out, since nothing of them could be measured: {', '.join(out)}."
        (folder / TABLE).write_text(render(rows, chosen, [said, basis]), encoding="utf-8")
        log.info("%s", said)
        return {
            "model": chosen,
            "evaluation": next(uri for uri, name in names.items() if name == chosen),
            "why": said,
            "measured": basis,
            "rows": [row.model_dump(mode="json") for row in rows],
            "dominated": {row.name: by for row in rows if (by := dominated_by(row, rows))},
        }

    return make(config, "pareto", parents, build)


def evaluated(config: ParetoConfig) -> list[str]:
    """Every evaluation of a student in the run, oldest first; raises MissingInput where there is none."""
    published = published_in(Path(config.run_root).expanduser().absolute())
    students = [name for name, each in published.items() if each.kind == "evaluation" and each.metrics["system"] == "student"]
    if not students:
        raise MissingInput(f"{config.run_root}: no student was evaluated there, so there is nothing to compare")
    return students


def open_model(evaluation: Artifact) -> Artifact:
    """The model that was evaluated, which may be another run's; raises MissingInput where it is gone."""
    return open_artifact(evaluation.manifest.parents["model"].uri, str(evaluation.path.parent), "model")


def row_names(evaluations: Mapping[str, Artifact], models: Mapping[str, Artifact]) -> dict[str, str]:
    """What each row is called: as its model or, where several models are called so, as its evaluation was named in the config."""
    count = Counter(model.manifest.name for model in models.values())
    return {uri: uri if count[models[uri].manifest.name] > 1 else models[uri].manifest.name for uri in evaluations}


def check_same(models: Mapping[str, Artifact], evaluations: Mapping[str, Artifact]) -> None:
    """Check that every evaluation is of a student as it is now, and that all asked the same prompts; raises ConfigError."""
    for name, evaluation in evaluations.items():
        if evaluation.manifest.metrics["system"] != "student":
            raise ConfigError(f"{evaluation.manifest.name} is of a whole teacher pipeline; the table has single models, asked directly")
        if evaluation.manifest.parents["model"].sha256 != models[name].as_parent().sha256:
            raise ConfigError(f"{evaluation.path} is not of {models[name].path} as it is now; evaluate it again")
    asked = {each.manifest.name: {row.prompt_id for row in read_predictions(each)} for each in evaluations.values()}
    first, *others = asked
    for name in others:
        if alone := asked[first] ^ asked[name]:
            raise ConfigError(
                f"{first} and {name} asked different prompts: {len(alone)} are in one alone, such as {min(alone)}; name in `evaluations` "
                "those to compare, or evaluate all with the same task, split and num_prompts"
            )


def measure(config: ParetoConfig, models: Mapping[str, Artifact], candidates: Sequence[str]) -> dict[str, Speed]:
    """Every model's speed, median of `rounds` in turns, so that what else the machine does meets all alike; none of one that answers
    nothing or, where it is no candidate, that the engine does not take."""
    task = load_task(config.task)
    prompts = choose_prompts(task.prompts(config.split), config.num_prompts, config.split)
    runs: dict[str, list[Speed]] = {name: [] for name in models}
    for number in range(1, config.rounds + 1):
        for name in list(runs):
            log.info("%s: measuring %s, round %d of %d", config.name, name, number, config.rounds)
            try:
                runs[name].append(measure_speed(models[name].path, prompts, task.tools, config.engine, config.max_tokens, BATCHES))
            except Exception as error:  # vLLM's are of many kinds
                if name in candidates and not isinstance(error, NoAnswer):
                    raise
                log.warning("%s: %s is left out: %s", config.name, name, error)
                del runs[name]
    return {name: median_speed(each) for name, each in runs.items()}


def describe_measurement(config: ParetoConfig, price: MachinePrice) -> str:
    """What the speeds and costs are of, in two sentences."""
    how = f"median of {config.rounds} runs in turns" if config.rounds > 1 else "one run"
    asked = f"{config.num_prompts} prompts, answers of at most {config.max_tokens} tokens"
    day = time.strftime("%Y-%m-%d", time.gmtime())
    return (
        f"Speeds: {how}, {asked}, vLLM {versions()['vllm']} on {describe_devices(config.engine)}, {day}. Costs: at the speed of "
        f"{max(BATCHES)} requests together, for {price.usd_per_hour:g} USD an hour ({price.machine})."
    )


def _reason(config: ParetoConfig, candidates: list[str], why: str) -> str:
    """Of the choice, in a few words."""
    if len(candidates) == 1:
        return config.candidates_are or "the only candidate"
    return f"of {config.candidates_are} it is {why}" if config.candidates_are else why


def _row(name: str, model: Artifact, evaluation: Artifact, speed: Speed, price: MachinePrice) -> Row:
    metrics = EvaluationMetrics.model_validate(evaluation.manifest.metrics)
    made = model.manifest.metrics
    seconds_each = metrics.completion_tokens_mean / speed.tokens_per_second[max(BATCHES)]
    return Row(
        name=name,
        format=made.get("format", "bfloat16"),
        parameters=metrics.parameters,
        bytes=metrics.bytes,
        quality=metrics.exact_match.value,
        quality_low=metrics.exact_match.low,
        quality_high=metrics.exact_match.high,
        usd_per_thousand_correct=usd_per_thousand_correct(seconds_each, metrics.exact_match.value, price),
        seconds_per_token=speed.seconds_per_token,
        tokens_per_second=speed.tokens_per_second,
        kl_nats=made.get("kl_nats"),
    )
