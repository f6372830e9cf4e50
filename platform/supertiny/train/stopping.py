"""A training job that is told to end (SIGTERM: `ray job stop`, Kubernetes, a batch system) has its workers write a checkpoint first."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

STOP = "stop"
"""File beside the workers' folder, on storage that all nodes share, by which the driver tells them."""
log = logging.getLogger(__name__)


@contextmanager
def saved_on_sigterm(file: Path) -> Iterator[None]:
    """The first SIGTERM inside makes the file, in place of ending the process; a second one ends it.

    Outside the main thread, which alone hears signals, nothing is changed.
    """
    file.unlink(missing_ok=True)
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def tell(*_: object) -> None:
        log.warning("SIGTERM: the workers end after this step, with a checkpoint")
        file.touch()
        signal.signal(signal.SIGTERM, before)

    before = signal.signal(signal.SIGTERM, tell)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def told_to_stop(file: Path) -> bool:
    """Whether the driver was told to end, as worker 0 sees it; all workers have to ask, and hear the same."""
    told = [file.exists() if dist.get_rank() == 0 else False]
    dist.broadcast_object_list(told, src=0)
    return told[0]
