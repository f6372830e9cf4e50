"""DeepSpeed without its compiled parts."""

from __future__ import annotations

import warnings

import deepspeed.ops
from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder


def prepare_deepspeed() -> None:
    """Keep DeepSpeed from compiling its shared-memory all-reduce in every fresh environment.

    Only its inference engine uses that, and the build takes a compiler and 40 s of two cores. To be called before
    `deepspeed.initialize`.
    """
    deepspeed.ops.__compatible_ops__[ShareMemCommBuilder.NAME] = False
    warnings.filterwarnings("ignore", "`torch.distributed.*is deprecated", FutureWarning)  # DeepSpeed's own calls
