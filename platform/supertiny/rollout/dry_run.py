"""What `--dry-run` says of a rollout: how many rows, tokens, hours and dollars, before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

from supertiny.config import TaskConfig
from supertiny.cost import machine_price
from supertiny.errors import SupertinyError
from supertiny.records import Usage
from supertiny.rollout.config import RatesConfig, RolloutConfig
from supertiny.rollout.estimate import estimate, ledger_rates
from supertiny.tasks.base import load_task


def describe(config: RolloutConfig) -> str:
    """One line: an estimate, or why there is none. It loads the task, and neither Ray nor an engine."""
    try:
        num_prompts = count_prompts(config.task, config.split, config.limit)
        price = machine_price(config.cost.machine, config.cost.prices)
        rates, source = _rates(config)
        num_rollouts = num_prompts * config.group_size
        rows = f"{num_rollouts:,} rollouts ({num_prompts:,} prompts, {config.group_size} completions each)"
        if rates is None:
            return f"{rows}; no estimate of tokens and dollars: {source}"
        found = estimate(num_rollouts, rates, config.layout.num_engines[1], price.usd_per_hour * config.cost.num_machines)
    except (SupertinyError, OSError, ValueError) as error:
        return f"no estimate: {error}"
    over = config.cost.budget_usd is not None and found.usd > config.cost.budget_usd
    machines = f"{config.cost.num_machines:g} {price.machine} at ${price.usd_per_hour:g} an hour"
    return (
        f"{rows}, about {found.prompt_tokens:,} prompt and {found.completion_tokens:,} completion tokens, {found.hours:.3g} hours and "
        f"${found.usd:.3g} on {machines}, the engine's start left out; by {source}"
        f"{f'; that is over cost.budget_usd ${config.cost.budget_usd:g}' if over else ''}"
    )


def count_prompts(task: TaskConfig, split: str, limit: int | None) -> int:
    """How many prompts a rollout takes."""
    return len(load_task(task).prompts(split)[:limit])


def _rates(config: RolloutConfig) -> tuple[RatesConfig | None, str]:
    """The stated rates, or else the last ledger's, and where they are from."""
    if config.cost.rates is not None:
        return _with_tokens_price(config.cost.rates, config), "cost.rates"
    path = Path(config.run_root).expanduser() / config.name / "ledger.json"
    if not path.exists():
        return None, f"there is no ledger {path} of an earlier run; set cost.rates"
    rates = ledger_rates(json.loads(path.read_text()))
    return rates, f"the ledger {path}" if rates else f"the ledger {path} has no engine_seconds; set cost.rates"


def _with_tokens_price(rates: RatesConfig, config: RolloutConfig) -> RatesConfig:
    """The rates, with what the endpoint takes for their tokens where they do not say it."""
    if "endpoint_usd" in rates.model_fields_set or config.endpoint is None or config.endpoint.price is None:
        return rates
    tokens = Usage(prompt_tokens=round(rates.prompt_tokens), completion_tokens=round(rates.completion_tokens))
    return rates.model_copy(update={"endpoint_usd": config.endpoint.price.usd(tokens)})
