"""What rollouts will take and what they cost: arithmetic, and nothing else.

Two ways to count dollars. By reservation: machines are paid for by the hour, from the first second to the last, whatever they do. By use:
an engine costs its share of the machines while it is busy. The latter is never more; between them lie start-up, waiting and idle engines.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from supertiny.records import Record, StepUsage, Usage
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
        usd=hours * usd_per_hour + num_rollouts * rates.endpoint_usd,
    )


def measured_rates(num_rollouts: int, total: StepUsage) -> RatesConfig | None:
    """Totals over the rollouts that they are of; None where nothing was measured."""
    if not num_rollouts or total.engine_seconds <= 0:
        return None
    return RatesConfig(
        engine_seconds=total.engine_seconds / num_rollouts,
        prompt_tokens=total.usage.prompt_tokens / num_rollouts,
        completion_tokens=total.usage.completion_tokens / num_rollouts,
        endpoint_usd=total.endpoint_usd / num_rollouts,
    )


def ledger_rates(ledger: Mapping[str, Any]) -> RatesConfig | None:
    """The rates that a ledger shows, those of its filters' calls included; None where it shows none."""
    tokens = {name: ledger.get("total", {}).get(name, 0) for name in ("prompt_tokens", "completion_tokens")}
    endpoint_usd = ledger.get("cost", {}).get("endpoint_usd") or 0.0
    total = StepUsage(usage=Usage(**tokens), engine_seconds=ledger.get("engine_seconds", 0.0), endpoint_usd=endpoint_usd)
    return measured_rates(ledger.get("rollouts", 0), total)


def reserved_usd(wall_seconds: float, usd_per_hour: float) -> float:
    """Dollars for machines that were held for so long; `usd_per_hour` is of all together."""
    return wall_seconds * usd_per_hour / 3600


def used_usd(engine_seconds: float, num_engines: int, usd_per_hour: float) -> float:
    """Dollars for the busy seconds of all engines, each an equal share of the machines."""
    return engine_seconds / num_engines * usd_per_hour / 3600


def cost(accepted: int, wall_seconds: float, steps: Mapping[str, StepUsage], num_engines: int, usd_per_hour: float) -> dict[str, Any]:
    """What rollouts cost, for their ledger: in all, and by pipeline step.

    A step has the share of the reserved dollars that it has of the engines' busy seconds, so that the steps add up to the whole. Endpoints'
    tokens are in both kinds of dollars. What is said of accepted rollouts is None where there is none.

    Args:
        steps: what each pipeline step took, all rollouts together.
    """
    total = sum(steps.values(), StepUsage())
    machines_usd = reserved_usd(wall_seconds, usd_per_hour)

    def dollars(step: StepUsage, share: float) -> dict[str, float | None]:
        reserved = machines_usd * share + step.endpoint_usd
        return {
            "reserved_usd": reserved,
            "used_usd": used_usd(step.engine_seconds, num_engines, usd_per_hour) + step.endpoint_usd,
            "endpoint_usd": step.endpoint_usd,
            "usd_per_thousand_accepted": 1000 * reserved / accepted if accepted else None,
        }

    shares = {name: step.engine_seconds / total.engine_seconds if total.engine_seconds else 0.0 for name, step in steps.items()}
    return {
        "usd_per_hour": usd_per_hour,
        "wall_seconds": wall_seconds,
        **dollars(total, 1.0),
        "per_accepted": _per_accepted(total, accepted),
        "by_pipeline_step": {name: dollars(step, shares[name]) for name, step in steps.items()},
    }


def _per_accepted(total: StepUsage, accepted: int) -> dict[str, float] | None:
    """What an accepted rollout took, the rejected ones paid for too."""
    amounts = {**total.usage.model_dump(), "engine_seconds": total.engine_seconds}
    return {name: amount / accepted for name, amount in amounts.items()} if accepted else None
