"""DeepSpeed without its compiled parts, and its words for our settings."""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import warnings
from pathlib import Path
from typing import Any

import deepspeed.ops
import torch.distributed as dist
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


def make_universal(state: Path, folder: Path) -> Path:
    """A folder that holds a checkpoint's state under its name, in a form that any number of workers loads; worker 0 converts it.

    For every worker of the process group to call. The engine has to be made with `checkpoint.load_universal`.
    """
    if dist.get_rank() == 0:
        from deepspeed.checkpoint.ds_to_universal import main

        shutil.rmtree(folder, ignore_errors=True)
        settings = argparse.Namespace(
            input_folder=str(state),
            output_folder=str(folder / state.name),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,  # what only Megatron's checkpoints have
        )
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # a page of progress
            main(settings)
    dist.barrier()
    return folder
