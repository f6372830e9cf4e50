"""What rollouts cost: the arithmetic, the budget, and what a dry run says."""

from __future__ import annotations

import json
import logging
import re
import time
from concurrent.futures import Future
from pathlib import Path

import pytest
from test_rollout_blocks import write_block

from supertiny.config import validate
from supertiny.errors import BudgetExceeded, ConfigError, NoProgress
from supertiny.llm.config import TokenPriceConfig
from supertiny.records import Completion, Prompt, Rollout, StepUsage, Usage, Verdict
from supertiny.rollout.config import RatesConfig, RolloutConfig
from supertiny.rollout.dry_run import describe
from supertiny.rollout.estimate import cost, estimate, ledger_rates, measured_rates, reserved_usd, used_usd
from supertiny.rollout.ledger import count, warning
from supertiny.rollout.progress import Goal, Tally, watch
from supertiny.rollout.progress import describe as progress_line
from supertiny.rollout.spending import Spending

RATES = RatesConfig(engine_seconds=0.5, prompt_tokens=100, completion_tokens=20)


def test_an_estimate_is_rollouts_times_rates_with_the_engines_side_by_side() -> None:
    found = estimate(7200, RATES, num_engines=2, usd_per_hour=3.0)
    assert (found.prompt_tokens, found.completion_tokens, found.hours, found.usd) == (720_000, 144_000, 0.5, 1.5)
    assert estimate(7200, RATES.model_copy(update={"endpoint_usd": 0.01}), num_engines=2, usd_per_hour=3.0).usd == 73.5


def test_rates_are_totals_over_rollouts_and_there_are_none_of_nothing() -> None:
    total = StepUsage(usage=Usage(prompt_tokens=400, completion_tokens=80), engine_seconds=2.0, endpoint_usd=1.0)
    assert measured_rates(4, total) == RATES.model_copy(update={"endpoint_usd": 0.25})
    assert measured_rates(0, StepUsage()) is None


def test_a_ledgers_rates_have_the_tokens_of_its_filters_too_and_an_old_ledger_has_none() -> None:
    judged = {"filters.judge": StepUsage(usage=Usage(prompt_tokens=100, completion_tokens=15), engine_seconds=0.25)}
    scored = {"filters.likelihood": StepUsage(usage=Usage(prompt_tokens=50, completion_tokens=5), engine_seconds=0.25)}
    taught = {"answer": StepUsage(usage=Usage(prompt_tokens=250, completion_tokens=60), engine_seconds=1.5)}
    row = Rollout(
        rollout_id="p/0",
        index=0,
        prompt=Prompt(id="p", messages=[]),
        tools=[],
        completion=Completion(text=""),
        verdict=Verdict(accepted=True, score=1),
        seconds=3.0,
        engine_seconds=2.0,
        steps=taught | judged | scored,
    )
    assert ledger_rates(count([row]) | {"rollouts": 4}) == RATES
    assert ledger_rates({"rollouts": 4, "prompt_tokens": 300}) is None


def test_machines_are_paid_for_while_they_are_held_and_engines_while_they_are_busy() -> None:
    assert reserved_usd(1800, usd_per_hour=3.0) == 1.5
    assert used_usd(1800, num_engines=2, usd_per_hour=3.0) == 0.75


STEPS = {
    "route": StepUsage(usage=Usage(calls=500, prompt_tokens=4000, completion_tokens=500), engine_seconds=300),
    "answer": StepUsage(usage=Usage(calls=500, prompt_tokens=6000, cached_tokens=2000, completion_tokens=1500), engine_seconds=600),
}


def test_the_ledgers_cost_is_both_and_that_of_a_thousand_accepted_rollouts() -> None:
    found = cost(500, wall_seconds=1800, steps=STEPS, num_engines=1, usd_per_hour=3.0)
    assert (found["reserved_usd"], found["used_usd"], found["usd_per_thousand_accepted"]) == (1.5, 0.75, 3.0)
    assert found["per_accepted"] == {
        "calls": 2,
        "prompt_tokens": 20,
        "cached_tokens": 4,
        "completion_tokens": 4,
        "engine_seconds": 1.8,
    }


def test_pipeline_steps_share_the_dollars_as_they_share_the_engine() -> None:
    by_step = cost(500, wall_seconds=1800, steps=STEPS, num_engines=1, usd_per_hour=3.0)["by_pipeline_step"]
    assert {name: (step["reserved_usd"], step["used_usd"]) for name, step in by_step.items()} == {
        "route": (pytest.approx(0.5), 0.25),
        "answer": (pytest.approx(1.0), 0.5),
    }


def test_what_an_endpoint_takes_is_in_both_kinds_of_dollars_of_its_step() -> None:
    steps = STEPS | {"filters.judge": StepUsage(usage=Usage(calls=500), endpoint_usd=2.0)}
    found = cost(500, wall_seconds=1800, steps=steps, num_engines=1, usd_per_hour=3.0)
    assert (found["reserved_usd"], found["used_usd"], found["endpoint_usd"]) == (3.5, 2.75, 2.0)
    judge = found["by_pipeline_step"]["filters.judge"]
    assert (judge["reserved_usd"], judge["used_usd"], judge["usd_per_thousand_accepted"]) == (2.0, 2.0, 4.0)


def test_where_nothing_was_accepted_an_accepted_rollout_costs_nothing_that_could_be_said() -> None:
    found = cost(0, 1800, STEPS, 1, 3.0)
    assert (found["usd_per_thousand_accepted"], found["per_accepted"]) == (None, None)


@pytest.mark.parametrize(("cached_usd", "usd"), [(0.5, 7.25), (None, 8.0)])
def test_an_endpoints_dollars_are_its_price_a_million_tokens(cached_usd: float | None, usd: float) -> None:
    price = TokenPriceConfig(prompt_usd=2.0, cached_usd=cached_usd, completion_usd=8.0)
    used = Usage(prompt_tokens=2_000_000, cached_tokens=500_000, completion_tokens=500_000)
    assert price.usd(used) == usd


def spending(folder: Path, *, seconds: float = 0.0, budget_usd: float | None = None) -> Spending:
    """At $3,600 an hour, a dollar a second, of which `seconds` have passed."""
    return Spending(folder / ".spent" / "spent.json", 3600.0, budget_usd, started=time.monotonic() - seconds)


def test_what_earlier_attempts_spent_counts(tmp_path: Path) -> None:
    spending(tmp_path, seconds=1000).save()
    spending(tmp_path, seconds=500).save()
    assert spending(tmp_path).usd == pytest.approx(1500, abs=60)


def test_endpoints_tokens_are_spent_too(tmp_path: Path) -> None:
    money = spending(tmp_path, budget_usd=900)
    money.check(5, 10)
    money.endpoint_usd = 900
    with pytest.raises(BudgetExceeded):
        money.check(5, 10)


def test_a_budget_is_spent_when_it_is_reached_and_none_never(tmp_path: Path) -> None:
    spending(tmp_path, seconds=1000).check(5, 10)
    spending(tmp_path, seconds=1000, budget_usd=2000).check(5, 10)
    with pytest.raises(
        BudgetExceeded, match=r"of cost.budget_usd \$900 are spent, 5 of 10 rollouts made .* raise the budget and run it again"
    ):
        spending(tmp_path, seconds=1000, budget_usd=900).check(5, 10)


def test_an_estimate_counts_what_is_spent_and_what_is_left(tmp_path: Path) -> None:
    spending(tmp_path, seconds=1000, budget_usd=2000).check_estimate(500, 64, 100)
    with pytest.raises(BudgetExceeded, match=r"by the first 64 rollouts the other 100 will cost \$1500, and \$10.. are spent: more than"):
        spending(tmp_path, seconds=1000, budget_usd=2000).check_estimate(1500, 64, 100)


def watched(folder: Path, money: Spending, *, rollouts: int, measured: int, no_progress_seconds: float = 600) -> None:
    """Watch blocks that are there, and a writer that never ends."""
    goal = Goal(
        rollouts=rollouts, measured_rollouts=measured, num_engines=1, log_every_seconds=0.05, no_progress_seconds=no_progress_seconds
    )
    watch(Future(), Tally(folder / "blocks", folder / "done"), goal, money, lambda *_: None)


def test_a_job_stops_after_the_first_prompts_if_the_others_are_too_dear(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_block(tmp_path, "a", [f"p{at}/0" for at in range(4)])
    caplog.set_level(logging.INFO)
    with pytest.raises(BudgetExceeded, match=r"by the first 4 rollouts the other 1996 will cost \$998"):
        watched(tmp_path, spending(tmp_path, budget_usd=900), rollouts=2000, measured=4)
    assert "the other 1996 take about 19960 prompt and 5988 completion tokens, 0.277 hours and $998" in caplog.text
    assert (tmp_path / "done" / "a.parquet").exists()


def test_a_job_goes_on_while_too_few_rollouts_say_what_they_cost_and_stops_when_the_budget_is_spent(tmp_path: Path) -> None:
    write_block(tmp_path, "a", [f"p{at}/0" for at in range(4)])
    with pytest.raises(BudgetExceeded, match="4 of 2000 rollouts made in this attempt; nothing is published"):
        watched(tmp_path, spending(tmp_path, budget_usd=1), rollouts=2000, measured=5)
    assert json.loads((tmp_path / ".spent" / "spent.json").read_text())["wall_seconds"] > 0


def test_a_job_without_a_budget_is_measured_and_not_stopped(tmp_path: Path) -> None:
    write_block(tmp_path, "a", [f"p{at}/0" for at in range(4)])
    with pytest.raises(NoProgress, match=r"or is layout.block_rows too many for that time\?"):
        watched(tmp_path, spending(tmp_path), rollouts=2000, measured=4, no_progress_seconds=0.3)


def config(folder: Path, **cost: object) -> RolloutConfig:
    task = {"options": {"train_prompts": 100}}
    return validate(RolloutConfig, {"run_root": str(folder), "task": task, "group_size": 3, "cost": cost}, "test")


def test_a_dry_run_says_how_many_rollouts_and_without_rates_no_more(tmp_path: Path) -> None:
    said = describe(config(tmp_path))
    assert said.startswith("300 rollouts (100 prompts, 3 completions each); no estimate of tokens and dollars: there is no ledger")


def test_a_dry_run_estimates_by_stated_rates(tmp_path: Path) -> None:
    said = describe(config(tmp_path, rates=RATES.model_dump(), machine="h100", num_machines=2, budget_usd=0.1))
    assert "about 30,000 prompt and 6,000 completion tokens, 0.0417 hours and $0.246 on 2 h100 at $2.95 an hour" in said
    assert said.endswith("by cost.rates; that is over cost.budget_usd $0.1")


@pytest.mark.parametrize(("stated", "usd"), [({}, "$0.42 on"), ({"endpoint_usd": 0.5}, "$30 on")])
def test_a_dry_run_by_stated_rates_has_the_price_of_the_endpoints_tokens(stated: dict[str, float], usd: str) -> None:
    price = {"prompt_usd": 50.0, "completion_usd": 100.0}
    rates = {"engine_seconds": 1e-9, "prompt_tokens": 100, "completion_tokens": 20, **stated}
    said = describe(priced(price, rates=rates).model_copy(update={"limit": 30}))
    assert "60 rollouts (30 prompts" in said
    assert usd in said


def test_a_dry_run_names_a_machine_without_a_price(tmp_path: Path) -> None:
    assert describe(config(tmp_path, machine="h10")).startswith("no estimate: machine 'h10' is not in the price table")


def test_a_dry_run_estimates_by_the_last_ledger(tmp_path: Path) -> None:
    (tmp_path / "rollouts").mkdir()
    ledger = {"rollouts": 10, "engine_seconds": 5.0, "total": {"prompt_tokens": 1000, "completion_tokens": 200}}
    (tmp_path / "rollouts" / "ledger.json").write_text(json.dumps(ledger))
    said = describe(config(tmp_path))
    assert "about 30,000 prompt and 6,000 completion tokens, 0.0417 hours" in said
    assert said.endswith(f"by the ledger {tmp_path}/rollouts/ledger.json")


@pytest.mark.parametrize("contents", ["{}", '{"rollouts": 3'])
def test_a_ledger_that_says_nothing_gives_no_estimate(contents: str, tmp_path: Path) -> None:
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts" / "ledger.json").write_text(contents)
    assert "no estimate" in describe(config(tmp_path))


def test_a_task_that_is_not_to_be_had_here_gives_no_estimate(tmp_path: Path) -> None:
    assert describe(validate(RolloutConfig, {"task": {"path": "no.where:Task"}}, "test")).startswith("no estimate: task.path no.where:Task")


def test_prices_and_budgets_do_not_decide_what_comes_out(tmp_path: Path) -> None:
    assert config(tmp_path, budget_usd=5.0, machine="h100").settings() == config(tmp_path).settings()
    assert priced(None).settings() == priced({"prompt_usd": 1.0, "completion_usd": 2.0}).settings()


def priced(price: dict[str, float] | None, **cost: object) -> RolloutConfig:
    """A rollout that asks two endpoints of the same price."""
    endpoint = {"base_url": "http://127.0.0.1:1/v1", "model": "m", "price": price}
    return validate(RolloutConfig, {"endpoint": endpoint, "filters": {"judge": {"endpoint": endpoint}}, "cost": cost}, "test")


def test_a_budget_for_endpoints_of_no_known_price_is_refused() -> None:
    assert priced({"prompt_usd": 0.0, "completion_usd": 0.0}, budget_usd=5.0).endpoints_without_price() == []
    with pytest.raises(ConfigError, match=r"nobody knows what endpoint and filters.judge.endpoint costs; set its price, 0 if nothing"):
        priced(None, budget_usd=5.0)


def test_a_line_of_progress_says_what_became_of_the_rows_and_what_it_cost(tmp_path: Path) -> None:
    write_block(tmp_path, "a", ["p/0", "p/1"])
    for at, reason in enumerate(("execution", "execution", "timed_out", "failed", "schema", "malformed")):
        write_block(tmp_path, f"b{at}", [f"q{at}/0"], reason=reason)
    tally = Tally(tmp_path / "blocks", tmp_path / "done", started=time.monotonic() - 1000)
    money = Spending(tmp_path / "spent.json", usd_per_hour=1e-9, endpoint_usd=0.25)
    assert progress_line(tally, 20, money).startswith("0/20 rollouts after 1")
    tally.update()
    line = progress_line(tally, 20, money)
    assert line.startswith("8/20 rollouts, 2 accepted (25%), 6 rejected (execution 2, ")
    assert re.search(r" 1, …\), 0 tokens/s, \$0\.25 so far, 1\d\d\d s left$", line)


def test_a_rollout_that_made_nothing_warns_of_it() -> None:
    assert warning({"rollouts": 5, "accepted": 1}) is None
    assert str(warning({"rollouts": 5, "accepted": 0})).startswith("none of the 5 rollouts was accepted: rejected.parquet says")
