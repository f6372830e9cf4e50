"""Making the runs of an ablation by the chain's own stages, each once: a result file says that one is done."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ablations.experiment import Experiment, Variant

from supertiny.artifacts import Artifact, read_manifest, resolve, write_atomically
from supertiny.config import StageConfig
from supertiny.errors import Stopped, SupertinyError
from supertiny.evaluate.config import EvaluateConfig
from supertiny.evaluate.judge import read_predictions
from supertiny.records import Record

log = logging.getLogger("ablation")


class Result(Record):
    """One run: a variant under a seed."""

    key: str
    """What decided it."""
    variant: str
    seed: int
    right: dict[str, bool]
    """Whether the answer to a prompt was accepted, by the prompt's id."""
    slices: dict[str, float]
    """Exact match by slice."""
    parameters: int
    bytes: int
    p50_seconds: float
    """Median latency of a prompt asked alone."""
    seconds: float
    """That the stage and the evaluation took."""
    made: dict[str, Any]
    """Metrics of the stage."""


class Stages(NamedTuple):
    """What makes the artifacts; other ones in tests."""

    inputs: Callable[[Experiment, Path], None]
    make: Callable[[StageConfig], Artifact]
    evaluate: Callable[[EvaluateConfig], Artifact]


class Run(NamedTuple):
    """A variant under a seed, and where its result goes."""

    variant: Variant
    seed: int
    path: Path
    key: str


def runs(experiment: Experiment, folder: Path) -> Iterator[Run]:
    """All of an experiment's, seed by seed, so that a table can be made after the first."""
    for seed in experiment.seeds:
        for variant in experiment.variants:
            path = folder / experiment.name / "results" / f"{variant.name}-{seed}.json"
            yield Run(variant, seed, path, experiment.key(variant, seed, folder))


def result_of(run: Run) -> Result | None:
    """A run's result, if there is one of these settings."""
    result = Result.model_validate_json(run.path.read_bytes()) if run.path.exists() else None
    return result if result and result.key == run.key else None


def missing_runs(experiment: Experiment, folder: Path, wanted: Collection[str] = ()) -> list[Run]:
    """Those without a result; of the wanted variants and what they are made from alone, where some are named."""
    names = {each.name for name in wanted or experiment.names for each in experiment.made_from(name)}
    return [run for run in runs(experiment, folder) if run.variant.name in names and result_of(run) is None]


def make_runs(experiment: Experiment, missing: Sequence[Run], folder: Path, stages: Stages, seconds: float | None = None) -> list[str]:
    """Make the runs; returns what failed, after all others were made.

    Args:
        seconds: no run is begun after so many.

    Raises:
        Stopped: a SIGTERM came while one was trained.
    """
    started = time.monotonic()
    if missing:
        stages.inputs(experiment, folder)
    failed: dict[tuple[str, int], str] = {}
    for number, run in enumerate(missing, 1):
        if seconds is not None and time.monotonic() - started > seconds:
            log.info("%d runs are left for another time", len(missing) - number + 1)
            break
        if (run.variant.student, run.seed) in failed:
            failed[run.variant.name, run.seed] = f"{run.variant.student} failed"
            continue
        try:
            result = make_run(experiment, run, folder, stages)
        except Stopped:
            raise
        except SupertinyError as error:
            failed[run.variant.name, run.seed] = f"{type(error).__name__}: {error}"
            log.error("%s, seed %d: %s", run.variant.name, run.seed, error)
            continue
        left = (time.monotonic() - started) / number * (len(missing) - number)
        log.info("run %d of %d: %s, seed %d: %.4f in %.0f s; some %.0f minutes left", number, len(missing), run.variant.name, run.seed,
                 share(result), result.seconds, left / 60)  # fmt: skip
    return [f"{name}, seed {seed}: {why}" for (name, seed), why in failed.items()]


def make_run(experiment: Experiment, run: Run, folder: Path, stages: Stages) -> Result:
    """The result of one run, written last; a killed one goes on from its last checkpoint."""
    started = time.monotonic()
    experiment.root(run.seed, folder).mkdir(parents=True, exist_ok=True)  # what is taken may be named from it, by way of ..
    stage, evaluation = experiment.stage(run.variant, run.seed, folder), experiment.evaluation(run.variant, run.seed, folder)
    if stage is not None:
        stages.make(stage)
    evaluated = stages.evaluate(evaluation)
    metrics = evaluated.manifest.metrics
    result = Result(
        key=run.key,
        variant=run.variant.name,
        seed=run.seed,
        right={row.prompt_id: row.exact_match for row in read_predictions(evaluated)},
        slices={name: interval["value"] for name, interval in metrics["slices"].items()},
        parameters=metrics["parameters"],
        bytes=metrics["bytes"],
        p50_seconds=metrics["latency_seconds"]["p50"],
        seconds=round(time.monotonic() - started, 1),
        made=read_manifest(resolve(evaluation.model, evaluation.run_root)).metrics if stage else {},
    )
    write_atomically(run.path, result.model_dump_json(indent=1))
    return result


def share(result: Result) -> float:
    """Exact match."""
    return sum(result.right.values()) / len(result.right)


def stages_of_the_chain() -> Stages:
    """The project's own, which need a running Ray."""
    from supertiny.compress.config import PruneConfig, QuantizeConfig
    from supertiny.compress.prune import prune
    from supertiny.compress.quantize import quantize
    from supertiny.evaluate.suites import evaluate
    from supertiny.train.config import DistillConfig, RlConfig
    from supertiny.train.distill import distill
    from supertiny.train.rl import rl

    by_config: Mapping[type[StageConfig], Any] = {DistillConfig: distill, RlConfig: rl, PruneConfig: prune, QuantizeConfig: quantize}
    return Stages(make_inputs, lambda stage: by_config[type(stage)](stage), evaluate)


def make_inputs(experiment: Experiment, folder: Path) -> None:
    """Teacher, base and rollouts, where they are neither taken nor shipped nor made before."""
    from supertiny.rollout.pipeline import rollout
    from supertiny.train.pretrain import pretrain

    config = experiment.inputs(folder)
    Path(config.run_root).mkdir(parents=True, exist_ok=True)  # what is taken may be named from it, by way of ..
    for name, section in (("teacher", config.pretrain_teacher), ("base", config.pretrain_base)):
        if section is not None and name not in experiment.take:
            pretrain(section)
    if "rollouts" not in experiment.take:
        teacher = {"teacher": experiment.take["teacher"]} if "teacher" in experiment.take else {}
        rollout(config.rollout.model_copy(update=teacher))
