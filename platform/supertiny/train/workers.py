"""Training workers: processes that Ray Train places, joins into one process group, and starts again when one is lost."""

from __future__ import annotations

import importlib
import logging
import os
import time
from pathlib import Path
from typing import Any

import ray
from ray.train import CheckpointConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError

from supertiny.cli import configure_logging
from supertiny.errors import ConfigError, CorruptArtifact, NoProgress, NotFinite, PlanTooBig, Stopped, SupertinyError
from supertiny.room import NO_GROWTH, can_grow_to, nodes_there
from supertiny.train.config import TrainConfig
from supertiny.train.stopping import STOP, saved_on_sigterm

KEPT_CHECKPOINTS = 2
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",  # models are paths; a wrong one must not be looked for on a hub
    "TOKENIZERS_PARALLELISM": "false",
}
"""Variables of every worker process."""
UNCOMPILED = {"TORCHDYNAMO_DISABLE": "1"}
"""And of those that compile nothing: else a decorator in DeepSpeed's Muon optimizer imports the whole compiler, 3 to 9 s."""
FOUND_TOGETHER = (NotFinite, CorruptArtifact, ConfigError, Stopped)
"""Errors that the workers raise at the same point, or none of them does."""
RAY_TRAIN = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # so that a relative path means the same in a worker as in the job
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else what datasets prints into a buffer of its own lands in the log
}
"""Variables that Ray Train reads where `fit` is called."""
log = logging.getLogger(__name__)


def check_fits(config: TrainConfig) -> None:
    """Refuse more workers than the job's cluster has, or can grow to have, logical CPUs or, where they compute on them, GPUs.

    Where there is no cluster, one of this machine's CPUs is started.

    Raises:
        PlanTooBig: naming both numbers.
    """
    if not ray.is_initialized():
        ray.init(logging_level=logging.WARNING)
    workers, nodes = config.min_workers or config.num_workers, nodes_there(config.labels)
    for resource, words in (("CPU", "logical CPUs"), ("GPU", "GPUs")):
        there = sum(node.get(resource, 0) for node in nodes)
        if resource not in _resources(config) or workers <= there:
            continue
        if can_grow_to([(_resources(config), config.labels)] * workers):
            return
        raise PlanTooBig(f"{workers} training workers need {workers} {words}, the cluster has {there:g}; {NO_GROWTH}; lower num_workers")


def checkpoints_in(folder: Path) -> Path:
    """Where the checkpoints of a stage's unfinished folder lie: Ray Train's own folder, which takes no others."""
    return folder / ".train" / "workers"


def run_workers(work: str, plan: object, config: TrainConfig, folder: Path, *, compiles: bool = False) -> dict[str, Any]:
    """What worker 0 returned, all having run `work(plan)` in one process group.

    A lost worker is replaced, up to `max_failures` times: then all start again, and `work` has to go on from its checkpoints.

    Args:
        work: `module:function`, imported in the workers alone.
        folder: the stage's unfinished folder.
        compiles: whether `work` needs torch's compiler, as vLLM does.

    Raises:
        NotFinite, CorruptArtifact, ConfigError: as `work` raised it in every worker; it is not tried again.
        Stopped: the job was told to end, and the workers left a checkpoint.
        NoProgress: the workers could not be placed in time.
        RuntimeError: workers were lost, or failed otherwise, more than `max_failures` times; the text has their traceback.
    """
    checkpoints = checkpoints_in(folder)
    checkpoints.mkdir(parents=True, exist_ok=True)
    for leftover in checkpoints.iterdir():
        if leftover.is_file():
            leftover.unlink()  # Ray Train's notes of a killed run, which may be cut short; `work` looks at the checkpoints itself
    limits = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(config.start_limit_seconds), "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1"}
    os.environ.update(RAY_TRAIN, RAY_TRAIN_ENABLE_PREEMPTION_WATCHER=str(int(config.spot)), **limits)
    trainer = TorchTrainer(
        _guarded,  # type: ignore[arg-type] # Ray's annotation says None; the value becomes Result.return_value
        train_loop_config={
            "work": work,
            "plan": plan,
            "threads": config.threads_per_worker,
            "device": config.device,
            "environment": ENVIRONMENT if compiles else ENVIRONMENT | UNCOMPILED,
        },
        scaling_config=ScalingConfig(
            num_workers=_workers(config),  # type: ignore[arg-type] # Ray's second API takes a range, its annotation is the first's
            use_gpu=config.device == "gpu",
            resources_per_worker=_resources(config),
            label_selector=config.labels or None,  # type: ignore[call-arg] # of the second Ray Train API
        ),
        torch_config=TorchConfig(backend="nccl" if config.device == "gpu" else "gloo", timeout_s=config.stall_seconds),
        run_config=RunConfig(
            name=checkpoints.name,
            storage_path=str(checkpoints.parent),
            failure_config=FailureConfig(max_failures=config.max_failures, controller_failure_limit=2),
            checkpoint_config=CheckpointConfig(num_to_keep=KEPT_CHECKPOINTS),
        ),
    )
    started = time.monotonic()
    try:
        with saved_on_sigterm(checkpoints.with_name(STOP)):
            outcome: Any = trainer.fit().return_value  # type: ignore[attr-defined] # Result of the second Ray Train API
            if isinstance(outcome, SupertinyError):
                raise outcome
    except ControllerError as error:
        raise NoProgress(f"{config.num_workers} training workers could not be started: {error}") from None
    except TrainingFailedError as error:
        raise RuntimeError(f"{config.name}: a training worker failed for good: {error}") from error
    log.info("%s: workers were done in %.1f s", config.name, time.monotonic() - started)
    result: dict[str, Any] = outcome
    return result


def _workers(config: TrainConfig) -> int | tuple[int, int]:
    """How many, or the fewest and the most."""
    return config.num_workers if config.min_workers is None else (config.min_workers, config.num_workers)


def _resources(config: TrainConfig) -> dict[str, float]:
    """What a worker takes of the cluster."""
    return {"CPU": 1, "GPU": 1} if config.device == "gpu" else {"CPU": 1}


def _guarded(settings: dict[str, Any]) -> dict[str, Any] | SupertinyError:
    """Run one worker.

    What all workers find out together is returned, since Ray Train would try what is raised again, in vain. What one finds out
    alone is raised, so that the others do not wait for it.
    """
    accelerator = "cuda" if settings["device"] == "gpu" else "cpu"
    os.environ.update(settings["environment"], DS_ACCELERATOR=accelerator)  # what DeepSpeed would find out by itself, with warnings
    import torch
    from ray.train.v2._internal.execution import context

    configure_logging()
    context.logger.setLevel(logging.WARNING)  # else two lines a checkpoint from every worker; this logger is named by its file
    torch.set_num_threads(settings["threads"])
    if accelerator == "cuda":
        torch.cuda.set_device(ray.train.torch.get_device())
    try:
        module, _, function = settings["work"].partition(":")
        result: dict[str, Any] = getattr(importlib.import_module(module), function)(settings["plan"])
    except FOUND_TOGETHER as error:
        return error
    return result
