"""What a training worker makes of a notice that the run, or one of its nodes, ends: a checkpoint, and no step after it.

Who is told of the end of a machine tells Ray (`supertiny.drain`), Ray Train every worker. A step made after the checkpoint would be lost
with the node, so the workers wait; Ray Train starts all of them again when the node's time is over.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import ray.train
from transformers import TrainerCallback

from supertiny.errors import Stopped
from supertiny.train.stopping import told_to_stop

_WITHOUT_DEADLINE_SECONDS = 120.0
"""What Ray Train takes for the deadline of a notice that has none."""
_GRACE_SECONDS = 10.0
log = logging.getLogger(__name__)


class Notice:
    """The notices of one run, of which every worker hears in the same step; all of them have to ask, which is a round of messages.

    Args:
        spot: whether nodes can be taken away.
        stop: the file by which the driver says that it was told to end.
    """

    def __init__(self, spot: bool, stop: Path) -> None:
        self._spot, self._stop = spot, stop
        self._stopped = False
        self._answered: set[str] = set()
        self._until = 0.0

    def came(self) -> bool:
        """Whether the run is told to end, or a node's end has been announced since the last time."""
        self._stopped = told_to_stop(self._stop)
        return self._stopped or self._a_node_ends()

    def wait_for_the_end(self) -> None:
        """Sleep until the announced end is past, and a little; who lives then goes on, for the node was left after all.

        Raises:
            Stopped: it is the run's own.
        """
        if self._stopped:
            raise Stopped("told to end (SIGTERM); the last step's checkpoint is written, and the same command goes on from it")
        time.sleep(max(0.0, self._until + _GRACE_SECONDS - time.time()))

    def _a_node_ends(self) -> bool:
        if not self._spot or (info := ray.train.get_preemption_info()) is None:
            return False
        new = set(info.preempted_node_ids) - self._answered
        self._answered |= new
        if new:
            self._until = info.deadline_ms / 1000 if info.deadline_ms else time.time() + _WITHOUT_DEADLINE_SECONDS
            log.warning("a node of this run will be taken away in %.0f s: checkpoint now", self._until - time.time())
        return bool(new)


class AnswerNotice(TrainerCallback):
    """The same in a trainer of TRL's; after SealCheckpoints, so that the checkpoint is one before the wait."""

    def __init__(self, notice: Notice) -> None:
        self._notice = notice
        self._waits = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the trainer on every worker; asks for a checkpoint, but after the last step."""
        if self._notice.came() and state.global_step < state.max_steps:
            self._waits = control.should_save = True

    def on_save(self, args: object, state: object, control: object, **_: object) -> None:
        """Called by the trainer on every worker, the checkpoint written."""
        if self._waits:
            self._waits = False
            self._notice.wait_for_the_end()
