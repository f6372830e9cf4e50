"""A training job that is told to end (SIGTERM to its driver, as by `ray job stop`) has its workers write a checkpoint first."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from supertiny.errors import Stopped

STOP = "stop"
"""File beside the workers' folder, on storage that all nodes share, by which the driver tells them."""
_unheard: list[int] = []
"""The SIGTERM that came when the workers asked no more; a list, since a handler may take no lock."""
log = logging.getLogger(__name__)


@contextmanager
def saved_on_sigterm(file: Path) -> Iterator[None]:
    """The first SIGTERM inside makes the file, in place of ending the process; a second one ends it.

    Where the workers were done all the same, for it came in their last step or after it, `end_if_told` is what ends the job.

    Outside the main thread, which alone hears signals, nothing is changed.
    """
    file.unlink(missing_ok=True)
    _unheard.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def tell(number: int, _: object) -> None:
        log.warning("SIGTERM: the workers end after this step, with a checkpoint")
        file.touch()
        _unheard.append(number)
        signal.signal(signal.SIGTERM, before)

    before = signal.signal(signal.SIGTERM, tell)
    try:
        yield
    except BaseException:
        _unheard.clear()  # which ends the job, too
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def end_if_told() -> None:
    """Called once the stage has published what its workers made.

    Raises:
        Stopped: there was a SIGTERM that they did not hear of.
    """
    if _unheard:
        _unheard.clear()
        raise Stopped("told to end (SIGTERM) when the last step was made; the model is published, and the same command goes on from it")


def told_to_stop(file: Path) -> bool:
    """Whether the driver was told to end, as worker 0 sees it; all workers have to ask, and hear the same.

    The folder is listed, since NFS looks there anew: that a name is not there it may believe for a minute (`acdirmax` of nfs(5)).
    """
    told = [file.name in os.listdir(file.parent) if dist.get_rank() == 0 else False]
    dist.broadcast_object_list(told, src=0)
    return told[0]
