"""What a rollout has cost so far, over all attempts, and the budget that ends it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

from supertiny.artifacts import write_atomically
from supertiny.errors import BudgetExceeded
from supertiny.rollout.estimate import reserved_usd

_GO_ON = "Nothing that was made is lost: raise the budget and run it again to go on from here"


@dataclass
class Spending:
    """Wall seconds of this attempt and, by a file, of those before it; what a killed attempt spent after it last saved is not known."""

    path: Path
    usd_per_hour: float
    """Of all machines together."""
    budget_usd: float | None = None
    endpoint_usd: float = 0.0
    """For the tokens of finished blocks, over all attempts; those of unfinished ones are spent too, and not known."""
    started: float = field(default_factory=time.monotonic)
    seconds_before: float = field(init=False)

    def __post_init__(self) -> None:
        self.seconds_before = json.loads(self.path.read_text())["wall_seconds"] if self.path.exists() else 0.0

    @property
    def seconds(self) -> float:
        """Of all attempts."""
        return self.seconds_before + time.monotonic() - self.started

    @property
    def usd(self) -> float:
        """By reservation, and endpoints' tokens."""
        return reserved_usd(self.seconds, self.usd_per_hour) + self.endpoint_usd

    def save(self) -> None:
        """Let the next attempt know."""
        write_atomically(self.path, json.dumps({"wall_seconds": self.seconds}))

    def check(self, made: int, total: int) -> None:
        """Check that the budget is not spent.

        Raises:
            BudgetExceeded: it is.
        """
        if self.budget_usd is not None and self.usd >= self.budget_usd:
            raise BudgetExceeded(
                f"${self.usd:.4g} of cost.budget_usd ${self.budget_usd:.4g} are spent, {made} of {total} rollouts made in this attempt; "
                f"nothing is published. {_GO_ON}"
            )

    def check_estimate(self, usd_left: float, measured: int, left: int) -> None:
        """Check that the budget will do.

        Args:
            usd_left: estimate for the rollouts that are left.
            measured: rollouts that it is made from.

        Raises:
            BudgetExceeded: it will not.
        """
        if self.budget_usd is not None and self.usd + usd_left > self.budget_usd:
            raise BudgetExceeded(
                f"by the first {measured} rollouts the other {left} will cost ${usd_left:.4g}, and ${self.usd:.4g} are spent: more than "
                f"cost.budget_usd ${self.budget_usd:.4g}; nothing is published. {_GO_ON}, or ask for fewer prompts (limit)"
            )
