"""The devices under an engine: a GPU or a core for each of its workers."""

from __future__ import annotations

import os

from supertiny.errors import ConfigError, PlanTooBig
from supertiny.llm.config import EngineConfig


def prepare_devices(config: EngineConfig) -> None:
    """Check that this machine has what an engine's workers need, in the thread that will step it: OpenMP's settings are a thread's.

    Raises:
        ConfigError: a setting is for a GPU or for a CPU, and this machine has the other.
        PlanTooBig: fewer GPUs, or where there is none fewer cores, than the engine has workers.
    """
    import torch

    if torch.cuda.is_available():
        check_gpus(config, torch.cuda.device_count())
    else:
        prepare_cpus(config, len(os.sched_getaffinity(0)))


def describe_devices(config: EngineConfig) -> str:
    """What an engine has here: GPUs, or threads of a CPU, which are this process's own number where the config has none."""
    import torch

    workers = f"{config.num_workers} x " if config.num_workers > 1 else ""
    if torch.cuda.is_available():
        return f"{workers}{torch.cuda.get_device_name()}"
    if config.num_workers > 1 and config.num_threads is None:
        return f"a CPU, {config.num_workers} workers, bound by vLLM"
    threads = config.num_threads or torch.get_num_threads()
    return f"a CPU, {workers}{threads} {'thread' if threads == 1 else 'threads'}"


def check_gpus(config: EngineConfig, num_gpus: int) -> None:
    """On a machine with GPUs, so many of them visible; raises as `prepare_devices`."""
    if config.num_threads is not None:
        raise ConfigError("engine.num_threads is for CPUs and this machine has a GPU; leave it out")
    if config.num_workers > num_gpus:
        raise PlanTooBig(f"an engine of {_workers(config)} takes as many GPUs of one node; visible here: {num_gpus}")


def prepare_cpus(config: EngineConfig, num_cpus: int) -> None:
    """On a machine without a GPU, so many cores given; says how many threads the workers shall have, and raises as `prepare_devices`."""
    if config.gpu_memory_utilization is not None:
        raise ConfigError("engine.gpu_memory_utilization is for GPUs and this machine has none; set kv_cache_gib alone")
    if config.pipeline_parallel_size > 1:  # its second stage asks for tensors that only the GPU worker's warm-up makes
        raise ConfigError("engine.pipeline_parallel_size is for GPUs (vLLM 0.29 fails on a CPU); split by tensor_parallel_size here")
    if config.num_workers > num_cpus:
        raise PlanTooBig(f"an engine of {_workers(config)} takes as many cores; this machine has {num_cpus}: set sizes that fit")
    if config.num_threads is None:
        return
    from torch._C import set_num_threads  # vLLM replaces torch.set_num_threads by a warning

    set_num_threads(config.num_threads)
    if config.num_workers > 1:  # in processes of their own, which vLLM would bind to cores that other engines have too
        os.environ.update(OMP_NUM_THREADS=str(config.num_threads), VLLM_CPU_OMP_THREADS_BIND="nobind")


def _workers(config: EngineConfig) -> str:
    return (
        f"{config.num_workers} workers (engine.tensor_parallel_size {config.tensor_parallel_size} x "
        f"engine.pipeline_parallel_size {config.pipeline_parallel_size})"
    )
