"""Work of one Ray task or actor, which is begun again where its node or process is lost."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError, RayTaskError, WorkerCrashedError

from supertiny.errors import InUse, NoProgress, SupertinyError

T = TypeVar("T")
LOST = (NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError, WorkerCrashedError)
TRIES = 3
"""Of one piece of work. Counted here, since Ray's own `max_retries` does not count those that ran out of memory."""
LOCK_SECONDS = 180
"""Longest wait for the lock of a process that is gone: NFS keeps a lost machine's until its lease is over, some 90 s."""
log = logging.getLogger(__name__)


def despite_lost_nodes(name: str, ask: Callable[[], T]) -> T:
    """What `ask` gets from Ray; it is called again where what worked on it is gone. What raised is a human's to see, and asked once.

    Args:
        name: whose work it is, for the log.

    Raises:
        NoProgress: it was gone every time.
        SupertinyError: what the work raised.
    """
    lost, locked_until = 0, 0.0
    while True:
        try:
            return ask()
        except RayTaskError as error:
            if isinstance(error.cause, InUse) and time.monotonic() < locked_until:
                time.sleep(2)
                continue
            if isinstance(error.cause, SupertinyError):
                raise error.cause from None
            raise
        except LOST as error:
            lost, locked_until, last = lost + 1, time.monotonic() + LOCK_SECONDS, " ".join(str(error).split())
            log.warning("%s: its node or process was lost, %s: %s", name, "beginning again" if lost < TRIES else "no more tries", last)
            if lost == TRIES:
                raise NoProgress(f"{name}: the node or process that worked on it was lost {TRIES} times; the last time: {last}") from None
