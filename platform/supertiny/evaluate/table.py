"""The report as tables for a terminal."""

from __future__ import annotations

from rich.table import Table

from supertiny.evaluate import phrases
from supertiny.evaluate.schema import Ab, Report, Stage

_COLUMNS = ("exact match", "95 % interval", "tokens", "p50", "p95", "$ per million right", "parameters", "size")


def render_table(report: Report) -> Table:
    """A row a stage; the gate's verdict is the caption."""
    table = Table(title="From the teacher pipeline to one call of a tiny model", caption=_caption(report), caption_justify="left")
    table.add_column("stage", no_wrap=True)
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    compared = {report.gate.candidate, report.gate.baseline} if report.gate else set()
    for stage in report.stages:
        table.add_row(*_cells(stage), style="bold" if stage.name in compared else None)
    return table


def render_ab_table(ab: Ab) -> Table:
    """A row an arm; what the cost is made of is the caption."""
    table = Table(title="Served traffic", caption=ab.cost_basis or None, caption_justify="left")
    table.add_column("arm", no_wrap=True)
    for column in phrases.ARM_COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_row("control: teacher pipeline", *phrases.arm(ab.control))
    table.add_row("treatment: student", *phrases.arm(ab.treatment))
    return table


def _cells(stage: Stage) -> list[str]:
    return [
        stage.name,
        phrases.percent(stage.exact_match.value),
        phrases.interval(stage.exact_match),
        f"{stage.completion_tokens_mean:.1f}",
        phrases.duration(stage.latency_seconds.p50),
        phrases.duration(stage.latency_seconds.p95),
        phrases.usd_per_million(stage.usd_per_thousand_correct),
        phrases.count(stage.parameters),
        phrases.size(stage.bytes),
    ]


def _caption(report: Report) -> str | None:
    return f"Gate: {phrases.explanation(report.gate)}" if report.gate else None
