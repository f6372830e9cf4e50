"""The one long-lived Ray actor that imports vLLM once and builds every evaluated model in turn."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from supertiny.cli import configure_logging
from supertiny.errors import NoProgress, PlanTooBig
from supertiny.evaluate.config import EvaluateConfig
from supertiny.evaluate.measure import Measurement, answer_all, latencies, make_system
from supertiny.llm.vllm import VllmLlm
from supertiny.lost_nodes import TRIES, despite_lost_nodes
from supertiny.records import Prompt
from supertiny.room import NO_GROWTH, can_grow_to, nodes_there
from supertiny.tasks.base import load_task

Key = tuple[str, float, tuple[tuple[str, str], ...]]
"""Ray job, GPUs, labels of the node."""
_EVALUATORS: dict[Key, Any] = {}
"""Actor handles: an actor lives as long as a handle of it."""
log = logging.getLogger(__name__)


class Evaluator:
    """Measures one model at a time; between two of them it holds no engine, only the imported libraries."""

    def __init__(self) -> None:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # its warnings are about speed-ups that an engine on a CPU has not
        configure_logging()

    def ready(self) -> None:
        """Answers as soon as the actor has its place."""

    def measure(self, model_path: str, config: EvaluateConfig, prompts: Sequence[Prompt]) -> Measurement:
        """Build the model's engine, warm it up, ask everything, and close it."""
        started = time.monotonic()
        llm = VllmLlm(model_path, config.engine)
        try:
            return asyncio.run(_measure(llm, config, prompts, started))
        finally:
            llm.close()


async def _measure(llm: VllmLlm, config: EvaluateConfig, prompts: Sequence[Prompt], started: float) -> Measurement:
    ask = make_system(config.system, load_task(config.task), llm, config.max_tokens)
    await latencies(ask, prompts[: config.warmup_prompts])
    warm = time.monotonic() - started
    answers, seconds = await answer_all(ask, prompts, config.concurrency, config.name)
    one_by_one = await latencies(ask, prompts[: config.latency_prompts])
    return Measurement(answers=answers, answer_seconds=seconds, latencies=one_by_one, engine_seconds=warm)


def measure_in_actor(model_path: Path, config: EvaluateConfig, prompts: Sequence[Prompt]) -> Measurement:
    """The measurement, made by this driver's evaluator; it is started where there is none, or where it has died.

    Raises:
        PlanTooBig: the cluster has not the CPU or GPUs at all.
        NoProgress: they did not come free in time, or as `despite_lost_nodes`.
        SupertinyError: what the engine or the task raised.
    """
    _connect()
    _check_fits(config.num_gpus, config.labels)
    return despite_lost_nodes(config.name, lambda: _ask(model_path, config, prompts))


def _ask(model_path: Path, config: EvaluateConfig, prompts: Sequence[Prompt]) -> Measurement:
    """Of the evaluator that lives, or of a new one; one with GPUs gives them back."""
    actor = evaluator(config.num_gpus, config.start_limit_seconds, config.labels)
    kept = not config.num_gpus
    try:
        measurement: Measurement = ray.get(actor.measure.remote(str(model_path), config, list(prompts)))
        return measurement
    except RayActorError:  # gone, or out of reach and perhaps still at it
        kept = False
        raise
    finally:
        if not kept:
            ray.kill(_EVALUATORS.pop(_key(config.num_gpus, config.labels)))


def evaluator(num_gpus: float, limit_seconds: float, labels: Mapping[str, str] = MappingProxyType({})) -> Any:
    """This driver's evaluator, alive and the same at every call. It takes a CPU to be placed and none while it waits.

    Raises:
        NoProgress: no CPU or GPU came free in time, or it died at every try: where a node was lost, the second may be put there too.
    """
    key = _key(num_gpus, labels)
    for _ in range(TRIES):
        if key not in _EVALUATORS:
            place: dict[str, Any] = {"label_selector": dict(labels)} if labels else {}
            if num_gpus:
                place |= {"num_cpus": 1, "num_gpus": num_gpus}  # without, Ray's default: a CPU to be placed, none after
            _EVALUATORS[key] = ray.remote(Evaluator).options(**place).remote()
        try:
            ray.get(_EVALUATORS[key].ready.remote(), timeout=limit_seconds)
            return _EVALUATORS[key]
        except RayActorError as error:
            log.warning("the evaluator died, starting another: %s", " ".join(str(error).split()))
            del _EVALUATORS[key]
        except GetTimeoutError:
            ray.kill(_EVALUATORS.pop(key))
            raise NoProgress(f"no place came free for the evaluator within {limit_seconds:.0f} s; the cluster is busy") from None
    raise NoProgress(f"the evaluator died {TRIES} times while it started; its log is in Ray's session folder")


def _key(num_gpus: float, labels: Mapping[str, str]) -> Key:
    return ray.get_runtime_context().get_job_id(), num_gpus, tuple(sorted(labels.items()))


def _connect() -> None:
    """Join the cluster of the job, or start one of this machine's CPUs where there is none."""
    if not ray.is_initialized():
        ray.init(include_dashboard=False, logging_level=logging.WARNING)


def _check_fits(num_gpus: float, labels: Mapping[str, str]) -> None:
    nodes = nodes_there(labels)
    if any(node.get("CPU", 0) >= 1 and node.get("GPU", 0) >= num_gpus for node in nodes):
        return
    if not can_grow_to([({"CPU": 1, "GPU": num_gpus}, labels)]):
        has = ", ".join(f"{node.get('CPU', 0):g} and {node.get('GPU', 0):g}" for node in nodes) or "none"
        raise PlanTooBig(f"an evaluation needs 1 CPU and {num_gpus:g} GPUs of one node; the cluster's nodes have {has}; {NO_GROWTH}")
