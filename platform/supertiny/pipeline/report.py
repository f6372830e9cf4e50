"""A run's report: its artifacts' numbers and, once it was served, its traffic."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from supertiny.compress.pareto import COLUMNS, Row, cells
from supertiny.evaluate.report import published_in, write_report
from supertiny.evaluate.schema import Ab, Arm, Choice, GateMetrics, Latency, Report
from supertiny.evaluate.table import render_ab_table, render_table
from supertiny.pipeline.config import PipelineConfig
from supertiny.serving.traffic import ArmTraffic, TrafficReport


def write_run_report(config: PipelineConfig, traffic: TrafficReport | None = None, serve_seconds: float | None = None) -> Report:
    """`report.json` and `report.html` in the run's folder.

    Args:
        traffic: what the served arms showed; None before they were served.
        serve_seconds: time from deploying the application to the end of the traffic.
    """
    ab = None
    if traffic is not None:
        ab = Ab(control=_arm(traffic.control), treatment=_arm(traffic.treatment), cost_basis=traffic.cost_basis)
    more = {"serve": round(serve_seconds, 3)} if serve_seconds is not None else {}
    choice = choice_judged(config)
    return write_report(config.run_root, prices=config.evaluate.prices, gate=config.gate.name, ab=ab, choice=choice, more_seconds=more)


def choice_judged(config: PipelineConfig) -> Choice | None:
    """Of the chain's two Pareto tables that whose choice the gate judged: one with what was trained through a rounding may be an earlier
    start's. None where neither is there yet."""
    published = published_in(Path(config.run_root).expanduser().absolute())
    gate = published.get(config.gate.name)
    judged = GateMetrics.model_validate(gate.metrics).candidate.evaluation if gate else None
    tables = [published[name].metrics for name in (config.pareto_aware, config.pareto.name) if name in published]
    found = next((table for table in tables if judged in (None, table.get("evaluation"))), None)
    if found is None:
        return None
    rows = [Row.model_validate(row) for row in found["rows"]]
    chosen = found["model"]
    return Choice(model=chosen, columns=list(COLUMNS), rows=cells(rows, chosen), why=found["why"], measured=found["measured"])


def show(report: Report, run_root: Path) -> None:
    """Print the report's tables and where the files lie."""
    console = Console(width=None if Console().is_terminal else 160)
    console.print(render_table(report))
    if report.ab is not None:
        console.print(render_ab_table(report.ab))
    console.print(f"report: {run_root / 'report.html'} (and report.json beside it)", soft_wrap=True)


def _arm(traffic: ArmTraffic) -> Arm:
    latency = traffic.latency_seconds
    return Arm(
        requests=traffic.requests,
        failed=traffic.failed,
        latency_seconds=Latency(p50=latency.p50, p95=latency.p95) if latency is not None else None,
        usd_per_thousand_requests=traffic.usd_per_thousand_requests,
        correct_fraction=traffic.correct_fraction,
    )
