"""Work of one Ray task or actor, which is begun again where its node or process is lost."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, RayTaskError, WorkerCrashedError

from supertiny.errors import NoProgress, SupertinyError

T = TypeVar("T")
TRIES = 3
"""Of one piece of work. Counted here, since Ray's own `max_retries` does not count those that ran out of memory."""
log = logging.getLogger(__name__)


def despite_lost_nodes(name: str, ask: Callable[[], T]) -> T:
    """What `ask` gets from Ray; it is called again where what worked on it is gone. What raised is a human's to see, and asked once.

    Args:
        name: whose work it is, for the log.

    Raises:
        NoProgress: it was gone every time.
        SupertinyError: what the work raised.
    """
    for left in reversed(range(TRIES)):
        try:
            return ask()
        except RayTaskError as error:
            if isinstance(error.cause, SupertinyError):
                raise error.cause from None
            raise
        except (NodeDiedError, WorkerCrashedError, OutOfMemoryError, RayActorError) as error:
            last = " ".join(str(error).split())
            log.warning("%s: its node or process was lost, %s: %s", name, "beginning again" if left else "no more tries", last)
    raise NoProgress(f"{name}: the node or process that worked on it was lost {TRIES} times; the last time: {last}")
