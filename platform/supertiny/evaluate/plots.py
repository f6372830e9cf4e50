"""The report's plots, each one SVG element that inherits the page's font and needs nothing from outside."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from supertiny.evaluate import phrases
from supertiny.evaluate.compare import Interval
from supertiny.evaluate.labels import place_labels
from supertiny.evaluate.schema import Curves, Recovery, Report

INK, MUTED, FAINT = "#1c2733", "#5d6b7a", "#d9dfe5"
BASELINE, CANDIDATE, OTHERS = "#1c2733", "#0b63c5", "#93a5b8"
SLICES = (("#0b63c5", "o"), ("#c2410c", "s"), ("#0f766e", "^"), ("#7c3aed", "D"), ("#a16207", "v"), ("#be185d", "P"))
WIDTH = 4.7
"""Inches: chosen so that the text is readable on a phone, where the plot is scaled down to the screen."""
_TICKS = (
    0.9,
    0.95,
    0.99,
    0.5,
    0.98,
    0.8,
    0.7,
    0.0,
    0.999,
    0.3,
    0.97,
    0.995,
    0.85,
    0.6,
    0.96,
    0.93,
    0.94,
    0.92,
    0.91,
    0.75,
    0.65,
    0.4,
    0.2,
    0.1,
)
"""Ticks of a proportion, the more telling first; what would crowd those is left out."""
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#eef1f4",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def quality_against_latency(report: Report) -> str:
    """Exact match over the median latency, a point a stage."""
    times = [stage.latency_seconds.p50 for stage in report.stages]
    return _scatter(
        report, "latency", times, "p50 latency, one at a time", lambda value: phrases.duration(value).replace(".00", "").replace(".0", "")
    )


def quality_against_cost(report: Report) -> str:
    """Exact match over the cost of a million right answers; a stage with none is left out."""
    values = [1000 * cost if (cost := stage.usd_per_thousand_correct) else None for stage in report.stages]
    return _scatter(report, "cost", values, "dollars per million right answers", _plain_usd)


def size_by_stage(report: Report) -> str:
    """Bytes on disk, with the parameters they hold."""
    values = [stage.bytes / 1e6 for stage in report.stages]
    texts = [f"{phrases.size(stage.bytes)}, {phrases.count(stage.parameters)} parameters" for stage in report.stages]
    names = [stage.name for stage in report.stages]
    return _bars("size", names, values, texts, [_colour(report, name) for name in names])


def time_by_stage(report: Report) -> str:
    """Wall time of every step, the evaluations together."""
    evaluations = {name: seconds for name, seconds in report.seconds.items() if name.startswith("eval-")}
    steps = {name: seconds for name, seconds in report.seconds.items() if name not in evaluations}
    if evaluations:
        steps[f"{len(evaluations)} evaluations"] = sum(evaluations.values())
    texts = [phrases.duration(seconds) for seconds in steps.values()]
    return _bars("time", list(steps), list(steps.values()), texts, [OTHERS] * len(steps))


def quality_by_slice(report: Report) -> str:
    """Exact match with its interval, a row a stage, a mark a slice."""
    slices = sorted({name for stage in report.stages for name in stage.slices})
    figure, axes = _figure(0.9 + 0.55 * len(report.stages))
    for index, name in enumerate(slices):
        colour, marker = SLICES[index % len(SLICES)]
        offset = 0.24 * (index - (len(slices) - 1) / 2)
        shown = [(row + offset, stage.slices[name]) for row, stage in enumerate(report.stages) if name in stage.slices]
        rows, values = [row for row, _ in shown], [_clip(value.value) for _, value in shown]
        errors = np.array([_errors(value) for _, value in shown]).T
        label = name.replace("_", " ")
        axes.errorbar(values, rows, xerr=errors, fmt=marker, ms=4.5, color=colour, elinewidth=1.2, label=label, clip_on=False)
    axes.set_yticks(range(len(report.stages)), [stage.name for stage in report.stages])
    axes.invert_yaxis()
    parts = [part for stage in report.stages for part in stage.slices.values()]
    _stretch(axes, "x", min(_clip(part.low) for part in parts), max(_clip(part.high) for part in parts))
    axes.grid(axis="x")
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("exact match")
    figure.legend(loc="upper left", ncols=3, frameon=False, handletextpad=0.2, borderaxespad=0.1, labelcolor=INK)
    return _svg(figure, "slices", top=0.95)


def training(name: str, curves: Curves) -> str:
    """A stage's metrics over its steps, one small plot a kind; the parts of a loss or reward share its plot."""
    shown = [(title, lines) for title, lines in _panels(curves) if lines]
    rows = math.ceil(len(shown) / 2)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, 0.3 + 1.25 * rows))
        panels = figure.subplots(rows, 2, squeeze=False).ravel()
    for axes, (title, lines) in zip(panels, shown, strict=False):
        for (metric, values), (colour, _) in zip(lines.items(), SLICES, strict=False):
            known = [(step, value) for step, value in zip(curves.steps, values, strict=True) if value is not None]
            axes.plot(*zip(*known, strict=True), color=colour, lw=1.1, marker="." if len(known) < 12 else "", label=metric)
        axes.set_title(title, loc="left", fontsize=8.5, color=INK)
        axes.tick_params(length=0, labelsize=7)
        axes.set_xlim(0, 1.02 * curves.steps[-1])
        axes.locator_params(nbins=4)
        axes.grid(axis="y")
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=6.5, labelcolor=INK, handlelength=1, borderaxespad=0)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    return _svg(figure, f"training-{name}")


def healing(name: str, recovery: Recovery) -> str:
    """Exact match minus the baseline's over the training tokens, a point a round, and the line that its whole interval has to be above."""
    figure, axes = _figure(2.6)
    gaps = [each.difference for each in recovery.rounds]
    errors = 100 * np.array([(gap.value - gap.low, gap.high - gap.value) for gap in gaps]).T
    points = [100 * gap.value for gap in gaps]
    axes.errorbar([each.tokens for each in recovery.rounds], points, yerr=errors, fmt="o-", ms=5, color=CANDIDATE, lw=1.1, elinewidth=1.4)
    axes.axhline(-100 * recovery.margin, color=MUTED, lw=0.9, ls=(0, (4, 3)), zorder=0)
    axes.axhline(0, color=FAINT, lw=0.9, zorder=0)
    axes.tick_params(length=0)
    axes.locator_params(nbins=5)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e6:g} M" if value >= 1e6 else f"{value:,.0f}"))
    axes.set_xlabel("training tokens")
    axes.set_ylabel(f"points from {recovery.baseline.removeprefix('eval-')}")
    return _svg(figure, f"healing-{name}")


def _panels(curves: Curves) -> list[tuple[str, dict[str, list[float | None]]]]:
    """Titles and the metrics below them; those that no title names have their own."""
    terms = ("loss", "cross_entropy", "forward_kl", "tail_penalty")
    rewards = ("reward", *(metric for metric in curves.metrics if metric.startswith("reward_") and metric != "reward_std"))
    grouped = [("loss, nats a token" if "cross_entropy" in curves.metrics else "loss", terms), ("reward", rewards)]
    titles = {
        "validation_exact_match": "exact match, prompts kept out",
        "kl": "reverse KL to the reference",
        "entropy": "entropy, nats a token",
        "gradient_norm": "gradient norm",
        "completion_tokens": "tokens a completion",
        "equal_groups_fraction": "groups of equal rewards, of all",
        "divergent_fraction": "tokens that teach, of all",
        "learning_rate": "learning rate",
        "tokens_per_second": "tokens a second",
        "fraction_of_peak": "of the device's peak",
    }
    groups = [*grouped, *((title, (metric, f"{metric}_replayed")) for metric, title in titles.items())]
    return [(title, {metric: curves.metrics[metric] for metric in metrics if metric in curves.metrics}) for title, metrics in groups]


def _scatter(report: Report, name: str, values: Sequence[float | None], label: str, tick: Callable[[float], str]) -> str:
    shown = [(stage, value) for stage, value in zip(report.stages, values, strict=True) if value is not None]
    figure, axes = _figure(3.5)
    axes.set_xscale("log")
    for stage, value in shown:
        colour = _colour(report, stage.name)
        errors = np.array([_errors(stage.exact_match)]).T
        size = 6 if colour == OTHERS else 8
        axes.errorbar([value], [_clip(stage.exact_match.value)], yerr=errors, fmt="o", ms=size, color=colour, elinewidth=1.4)
    matches = [stage.exact_match for stage, _ in shown]
    _stretch(axes, "y", min(_clip(match.low) for match in matches), max(_clip(match.high) for match in matches))
    _decades(axes, [value for _, value in shown], tick)
    _allowed(axes, report)
    axes.grid(axis="both")
    axes.tick_params(length=0)
    axes.set_xlabel(label)
    axes.set_ylabel("exact match")
    figure.subplots_adjust(left=0.15, right=0.97, top=0.97, bottom=0.14)
    anchors = [(value, _clip(stage.exact_match.value)) for stage, value in shown]
    bars = [(_clip(stage.exact_match.low), _clip(stage.exact_match.high)) for stage, _ in shown]
    colours = [_colour(report, stage.name) for stage, _ in shown]
    place_labels(axes, [stage.name for stage, _ in shown], anchors, bars, [MUTED if colour == OTHERS else colour for colour in colours])
    return _svg(figure, name)


def _bars(name: str, labels: Sequence[str], values: Sequence[float], texts: Sequence[str], colours: Sequence[str]) -> str:
    figure, axes = _figure(0.35 + 0.29 * len(labels))
    axes.barh(range(len(labels)), values, color=list(colours), height=0.62)
    longest = max([*values, 1e-9])
    for row, (value, text) in enumerate(zip(values, texts, strict=True)):
        inside = value > 0.55 * longest
        colour = "white" if inside and colours[row] != OTHERS else INK
        axes.annotate(
            text, (value, row), xytext=(-5 if inside else 5, 0), textcoords="offset points", va="center", ha="right" if inside else "left",
            color=colour, fontsize=8.5,
        )  # fmt: skip
    axes.set_yticks(range(len(labels)), list(labels))
    axes.set_xlim(0, 1.02 * longest)
    axes.invert_yaxis()
    axes.tick_params(length=0, labelcolor=INK)
    axes.set_xticks([])
    for side in axes.spines.values():
        side.set_visible(False)
    return _svg(figure, name)


def _figure(height: float) -> tuple[Figure, Axes]:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, height))
        return figure, figure.add_subplot()


def _svg(figure: Figure, name: str, top: float | None = None) -> str:
    """The figure as one SVG element; ids get the plot's name, so that several fit into one page."""
    buffer = io.StringIO()
    if name in ("slices", "size", "time") or name.startswith(("training", "healing")):
        figure.tight_layout(pad=0.2, rect=(0, 0, 1, top or 1))
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true" focusable="false">', text, count=1)
    return text.replace("'DejaVu Sans'", "system-ui").replace('xlink:href="', 'href="')


def _colour(report: Report, name: str) -> str:
    if report.gate and name == report.gate.candidate:
        return CANDIDATE
    return BASELINE if name == (report.gate.baseline if report.gate else "teacher") else OTHERS


def _allowed(axes: Axes, report: Report) -> None:
    """A line at the lowest exact match that the gate could accept."""
    baseline = phrases.stage(report, report.gate.baseline) if report.gate else None
    if report.gate and baseline:
        level = _clip(baseline.exact_match.value - report.gate.margin)
        axes.axhline(level, color=MUTED, lw=0.9, ls=(0, (4, 3)), zorder=0)
        text = f"{report.gate.baseline} less {100 * report.gate.margin:g} points"
        axes.annotate(text, (0.99, level), xycoords=("axes fraction", "data"), xytext=(0, -3), textcoords="offset points",
                      ha="right", va="top", color=MUTED, fontsize=8)  # fmt: skip


def _clip(value: float) -> float:
    return min(max(value, 0.0), 0.999)


def _errors(value: Interval) -> tuple[float, float]:
    return _clip(value.value) - _clip(value.low), _clip(value.high) - _clip(value.value)


def _stretch(axes: Axes, side: str, lowest: float, highest: float) -> None:
    """An axis of proportions, stretched towards 1 by the logarithm of what is missing there."""
    functions: Any = (lambda p: -np.log10(np.maximum(1 - p, 1e-4)), lambda t: 1 - 10.0**-t)
    low, high = (float(functions[0](np.array(end))) for end in (lowest, highest))
    pad = 0.07 * (high - low) + 0.02
    low, high = max(low - pad, -0.02), min(high + pad, 3.02)
    axis = axes.xaxis if side == "x" else axes.yaxis
    getattr(axes, f"set_{side}scale")("function", functions=functions)
    getattr(axes, f"set_{side}lim")(functions[1](low), functions[1](high))
    ticks: list[float] = []
    for tick in _TICKS:
        place = float(functions[0](np.array(tick)))
        if low <= place <= high and all(abs(place - functions[0](np.array(other))) > 0.11 * (high - low) for other in ticks):
            ticks.append(tick)
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))


def _decades(axes: Axes, values: Sequence[float], tick: Callable[[float], str]) -> None:
    """Few round ticks on a logarithmic axis, with room for labels beyond the outermost points."""
    low, high = min(values) / 1.6, max(values) * 1.6
    powers = range(int(np.floor(np.log10(low))) - 1, int(np.ceil(np.log10(high))) + 1)
    rounds = [one * 10.0**power for power in powers for one in (1, 2, 3, 5)]
    inside = [value for value in rounds if low <= value <= high]
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(inside if len(inside) <= 6 else [value for value in inside if f"{value:e}"[0] == "1"]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))


def _plain_usd(value: float) -> str:
    return "$" + f"{value:.9f}".rstrip("0").rstrip(".")
