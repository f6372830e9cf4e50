"""What rollouts will take and what they cost: arithmetic, and nothing else.

Two ways to count dollars. By reservation: machines are paid for by the hour, from the first second to the last, whatever they do. By use:
an engine costs its share of the machines while it is busy. The latter is never more; between them lie start-up, waiting and idle engines.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from supertiny.records import Record
from supertiny.rollout.config import RatesConfig

MEASURED_PROMPTS = 32
"""Prompts after which a running job knows its rates."""


class Estimate(Record):
    """What a number of rollouts will take, engines that never idle assumed, their start left out."""

    rollouts: int
    prompt_tokens: int
    completion_tokens: int
    hours: float
    usd: float


def estimate(num_rollouts: int, rates: RatesConfig, num_engines: int, usd_per_hour: float) -> Estimate:
    """Rollouts times rates, the engines side by side.

    Args:
        usd_per_hour: of all machines together.
    """
    hours = num_rollouts * rates.engine_seconds / num_engines / 3600
    return Estimate(
        rollouts=num_rollouts,
        prompt_tokens=round(num_rollouts * rates.prompt_tokens),
        completion_tokens=round(num_rollouts * rates.completion_tokens),
        hours=hours,
        usd=hours * usd_per_hour,
    )


def measured_rates(num_rollouts: int, engine_seconds: float, prompt_tokens: int, completion_tokens: int) -> RatesConfig | None:
    """Totals over the rollouts that they are of; None where nothing was measured."""
    if not num_rollouts or engine_seconds <= 0:
        return None
    return RatesConfig(
        engine_seconds=engine_seconds / num_rollouts,
        prompt_tokens=prompt_tokens / num_rollouts,
        completion_tokens=completion_tokens / num_rollouts,
    )


def ledger_rates(ledger: Mapping[str, Any]) -> RatesConfig | None:
    """The rates that a ledger shows, its judge's tokens included; None where it shows none."""
    judge = ledger.get("judge", {})
    tokens = {name: ledger.get(name, 0) + judge.get(name, 0) for name in ("prompt_tokens", "completion_tokens")}
    return measured_rates(ledger.get("rollouts", 0), ledger.get("engine_seconds", 0.0), **tokens)


def reserved_usd(wall_seconds: float, usd_per_hour: float) -> float:
    """Dollars for machines that were held for so long; `usd_per_hour` is of all together."""
    return wall_seconds * usd_per_hour / 3600


def used_usd(engine_seconds: float, num_engines: int, usd_per_hour: float) -> float:
    """Dollars for the busy seconds of all engines, each an equal share of the machines."""
    return engine_seconds / num_engines * usd_per_hour / 3600


def cost(accepted: int, wall_seconds: float, engine_seconds: float, num_engines: int, usd_per_hour: float) -> dict[str, float | None]:
    """What rollouts cost, for their ledger; a thousand accepted ones by reservation, and None where there is none."""
    reserved = reserved_usd(wall_seconds, usd_per_hour)
    return {
        "usd_per_hour": usd_per_hour,
        "wall_seconds": wall_seconds,
        "reserved_usd": reserved,
        "used_usd": used_usd(engine_seconds, num_engines, usd_per_hour),
        "usd_per_thousand_accepted": 1000 * reserved / accepted if accepted else None,
    }
