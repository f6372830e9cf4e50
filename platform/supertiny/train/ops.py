"""DeepSpeed without its compiled parts, and its words for our settings."""

from __future__ import annotations

import warnings
from typing import Any

import deepspeed.ops
from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

from supertiny.train.config import TrainConfig


def prepare_deepspeed() -> None:
    """Keep DeepSpeed from compiling its shared-memory all-reduce in every fresh environment.

    Only its inference engine uses that, and the build takes a compiler and 40 s of two cores. To be called before
    `deepspeed.initialize`.
    """
    deepspeed.ops.__compatible_ops__[ShareMemCommBuilder.NAME] = False
    warnings.filterwarnings("ignore", "`torch.distributed.*is deprecated", FutureWarning)  # DeepSpeed's own calls


def zero_settings(config: TrainConfig) -> dict[str, Any]:
    """What is shared out, and what of it lies in the host's memory."""
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.offload:
        host = {"device": "cpu", "pin_memory": True}
        zero |= {"offload_optimizer": host, **({"offload_param": host} if config.zero_stage == 3 else {})}
    return {"zero_optimization": zero, "zero_force_ds_cpu_optimizer": False}  # its own optimizer would have to be compiled
