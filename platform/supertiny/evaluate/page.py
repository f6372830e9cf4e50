"""The report as one HTML page: no script, no font, style sheet or image from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from importlib.resources import files
from string import Template

from supertiny.evaluate import phrases, plots
from supertiny.evaluate.schema import TRANSFERS, Choice, Curves, GateResult, Recovery, Report, Round, Stage


def render_page(report: Report) -> str:
    """The whole page."""
    template = Template((files("supertiny.evaluate") / "page.html").read_text())
    return template.substitute(
        title=escape(_title(report)),
        date=escape(report.date[:10]),
        verdict=_verdict(report),
        tiles=_tiles(report),
        plots="\n".join(_figure(report, *plot) for plot in _PLOTS),
        stages=_stages(report),
        choice=_choice(report.choice) if report.choice else "",
        healing=_healing(report),
        slices=_slices(report.gate) if report.gate else "",
        training=_training(report),
        ab=_ab(report),
        definitions=_definition_list(_definitions(report)),
        provenance=_definition_list(_provenance(report)),
    )


def _title(report: Report) -> str:
    return f"supertiny: {report.gate.verdict}, {report.gate.candidate}" if report.gate else "supertiny report"


def _verdict(report: Report) -> str:
    gate = report.gate
    if gate is None:
        return '<div class="verdict none"><p class="headline">No gate has been run yet</p></div>'
    baseline = phrases.stage(report, gate.baseline)
    headline = phrases.headline(gate, phrases.called(gate.baseline, baseline.system if baseline else "student"))
    return (
        f'<div class="verdict {gate.verdict}"><strong class="word">{gate.verdict}</strong>'
        f'<p class="headline">{escape(headline)}</p><p>{escape(phrases.explanation(gate))}</p>'
        f"<p>{escape(phrases.proof(report.parity, gate.candidate))}</p></div>"
    )


def _tiles(report: Report) -> str:
    """The candidate in four numbers, each with what it is compared with."""
    gate = report.gate
    ours = phrases.stage(report, gate.candidate) if gate else None
    theirs = phrases.stage(report, gate.baseline) if gate else None
    if gate is None or ours is None or theirs is None:
        return ""
    teacher = phrases.called(theirs.name, theirs.system)
    our_time, their_time = ours.latency_seconds.p50, theirs.latency_seconds.p50
    tiles = [
        (
            phrases.percent(ours.exact_match.value),
            "exact match",
            f"95 % interval {phrases.interval(ours.exact_match)}; {teacher}: {phrases.percent(theirs.exact_match.value)}",
        ),
        (
            phrases.times(our_time / their_time),
            "median latency",
            f"{phrases.duration(our_time)} against {phrases.duration(their_time)} of {teacher}, one prompt at a time",
        ),
    ]
    if ours.usd_per_thousand_correct and theirs.usd_per_thousand_correct:
        ratio = ours.usd_per_thousand_correct / theirs.usd_per_thousand_correct
        costs = " against ".join(phrases.usd_per_million(stage.usd_per_thousand_correct) for stage in (ours, theirs))
        tiles.append((phrases.times(ratio), "cost of a right answer", f"per million: {costs} of {teacher}, on a busy machine"))
    student = next((stage for stage in reversed(report.stages) if stage.name in TRANSFERS), theirs)
    sizes = f"{phrases.size(ours.bytes)} against {phrases.size(student.bytes)} of {student.name}"
    fewer = 1 - ours.parameters / student.parameters
    tiles.append((phrases.times(ours.bytes / student.bytes), "size", f"{sizes}, with {phrases.percent(fewer)} fewer parameters"))
    return '<div class="tiles">' + "".join(_tile(*tile) for tile in tiles) + "</div>"


def _tile(number: str, what: str, base: str) -> str:
    return (
        f'<div class="tile"><div class="number">{escape(number)}</div><div class="what">{escape(what)}</div>'
        f'<div class="base">{escape(base)}</div></div>'
    )


def _alt_quality(report: Report, measure: Callable[[Stage], str]) -> str:
    return "; ".join(f"{stage.name} {phrases.percent(stage.exact_match.value)} at {measure(stage)}" for stage in report.stages)


_PLOTS: Sequence[tuple[str, Callable[[Report], str], str, Callable[[Report], str]]] = (
    (
        "Quality against latency",
        plots.quality_against_latency,
        "Up is better, left is faster. Bars are 95 % intervals; the upright axis is stretched towards 100 %.",
        lambda report: _alt_quality(report, lambda stage: phrases.duration(stage.latency_seconds.p50)),
    ),
    (
        "Quality against cost",
        plots.quality_against_cost,
        "Up is better, left is cheaper. Wrong answers are paid for and do not count.",
        lambda report: _alt_quality(report, lambda stage: phrases.usd_per_million(stage.usd_per_thousand_correct)),
    ),
    (
        "Quality by slice",
        plots.quality_by_slice,
        "Compression can break rare cases first, so each part of the held-out prompts stands by itself, with its 95 % interval.",
        lambda report: "; ".join(
            f"{stage.name} " + ", ".join(f"{name} {phrases.percent(part.value)}" for name, part in stage.slices.items())
            for stage in report.stages
        ),
    ),
    (
        "Size",
        plots.size_by_stage,
        "Weights on disk, and the parameters that they stand for.",
        lambda report: "; ".join(f"{stage.name} {phrases.size(stage.bytes)}" for stage in report.stages),
    ),
    (
        "Time to make it",
        plots.time_by_stage,
        "Wall time of every step of this run, in the order in which they finished.",
        lambda report: "; ".join(f"{name} {phrases.duration(seconds)}" for name, seconds in report.seconds.items()),
    ),
)
"""Heading, plot, caption and the text for whoever cannot see it."""


def _figure(report: Report, heading: str, plot: Callable[[Report], str], caption: str, alt: Callable[[Report], str]) -> str:
    label = escape(f"{heading}. {alt(report)}", quote=True)
    return (
        f'<figure><h3>{escape(heading)}</h3><div role="img" aria-label="{label}">{plot(report)}</div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _stages(report: Report) -> str:
    numbers = ("tokens", "latency p50", "latency p95", "$ per million right", "parameters", "size")
    head = ("stage", "exact match", "call name", "argument F1", *numbers)
    return _table(head, ((_role(report, stage.name), _stage_cells(stage)) for stage in report.stages))


def _stage_cells(stage: Stage) -> list[str]:
    """Cells as HTML."""
    match, system = stage.exact_match, "whole pipeline" if stage.system == "teacher" else "one call"
    return [
        f"{escape(stage.name)}<small>{system}</small>",
        f"{phrases.percent(match.value)}<small>{phrases.interval(match)}</small>",
        phrases.percent(stage.call_name_accuracy),
        phrases.NOTHING if stage.argument_f1 is None else f"{stage.argument_f1:.3f}",
        f"{stage.completion_tokens_mean:.1f}",
        phrases.duration(stage.latency_seconds.p50),
        phrases.duration(stage.latency_seconds.p95),
        phrases.usd_per_million(stage.usd_per_thousand_correct),
        phrases.count(stage.parameters),
        phrases.size(stage.bytes),
    ]


def _choice(choice: Choice) -> str:
    rows = (("candidate" if cells[0] == choice.model else "", list(map(_interval_below, cells))) for cells in choice.rows)
    why = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(choice.why))
    return (
        '<section aria-labelledby="choice"><h2 id="choice">Formats and shapes against each other</h2>'
        f'<p class="muted">{why} {escape(choice.measured)}</p>{_table(choice.columns, rows)}</section>'
    )


def _interval_below(cell: str) -> str:
    return re.sub(r" \((.+)\)$", r"<small>\1</small>", escape(cell))


def _healing(report: Report) -> str:
    if not report.recoveries:
        return ""
    parts = "\n".join(_recovery(name, recovery) for name, recovery in report.recoveries.items())
    return f'<section aria-labelledby="healing"><h2 id="healing">Healing until it is enough</h2>{parts}</section>'


def _recovery(name: str, recovery: Recovery) -> str:
    """What a recovery came to, its rounds as a table and, where there was more than the start, as a plot."""
    cells = [("candidate" if each.model == recovery.model else "", _round_cells(each)) for each in recovery.rounds]
    head = ("model", "training tokens", "exact match", f"minus {recovery.baseline.removeprefix('eval-')}", "verdict")
    said = f'<h3>{escape(name)}</h3><p class="muted">{escape(phrases.recovered(recovery))}</p>{_table(head, cells)}'
    if len(recovery.rounds) == 1:
        return said
    told = "; ".join(f"{each.model} {phrases.gap(each.difference)} after {each.tokens:,} tokens" for each in recovery.rounds)
    label = escape(f"{name}: {told}", quote=True)
    return f'{said}<div class="plots"><figure><div role="img" aria-label="{label}">{plots.healing(name, recovery)}</div></figure></div>'


def _round_cells(each: Round) -> list[str]:
    return [escape(each.model), f"{each.tokens:,}", phrases.percent(each.exact_match), escape(phrases.gap(each.difference)), each.verdict]


def _slices(gate: GateResult) -> str:
    rows = [("", [escape(name.replace("_", " ")), escape(phrases.gap(part))]) for name, part in gate.slices.items()]
    rows.append(("candidate", ["all", escape(phrases.gap(gate.difference))]))
    table = _table(("slice", f"{gate.candidate} minus {gate.baseline}"), rows)
    return (
        '<section aria-labelledby="slices"><h2 id="slices">The gate by slice</h2>'
        f'<p class="muted">Only the last line decides; the others show where a loss would come from.</p>{table}</section>'
    )


def _training(report: Report) -> str:
    figures = "\n".join(_curves(name, curves) for name, curves in report.curves.items())
    if not figures:
        return ""
    return (
        '<section aria-labelledby="training"><h2 id="training">How training went</h2><p class="muted">Metrics over the steps, from each '
        f"stage's own file; TensorBoard reads the same from the run's folder.</p><div class=\"plots\">\n{figures}\n</div></section>"
    )


def _curves(name: str, curves: Curves) -> str:
    ends = [(metric, [value for value in values if value is not None]) for metric, values in curves.metrics.items()]
    told = "; ".join(f"{metric} from {values[0]:.4g} to {values[-1]:.4g}" for metric, values in ends)
    label = escape(f"{name}, {curves.steps[-1]} steps. {told}", quote=True)
    return f'<figure><h3>{escape(name)}</h3><div role="img" aria-label="{label}">{plots.training(name, curves)}</div></figure>'


def _ab(report: Report) -> str:
    if report.ab is None:
        return ""
    arms = (("baseline", "control: the teacher pipeline", report.ab.control), ("candidate", "treatment: the student", report.ab.treatment))
    table = _table(("arm", *phrases.ARM_COLUMNS), ((role, [name, *phrases.arm(arm)]) for role, name, arm in arms))
    return (
        '<section aria-labelledby="ab"><h2 id="ab">Served traffic</h2><p class="muted">The A/B over HTTP as its client saw it, both arms '
        f"behind one router on the same machine. {escape(report.ab.cost_basis)}</p>{table}</section>"
    )


def _table(head: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """A table that scrolls sideways on a narrow screen; cells are HTML already, a row's role is its class."""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr class="{role}"><th scope="row">{cells[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in cells[1:]) + "</tr>"
        for role, cells in rows
    )
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _role(report: Report, name: str) -> str:
    if report.gate is None:
        return ""
    return {report.gate.candidate: "candidate", report.gate.baseline: "baseline"}.get(name, "")


def _definitions(report: Report) -> list[tuple[str, str]]:
    price = report.price
    asked = sorted({stage.exact_match.n for stage in report.stages})
    same = f"{asked[0]:,} prompts of the held-out split, the same for every stage"
    prompts = same if len(asked) == 1 else f"{asked[0]:,} to {asked[-1]:,} prompts of the held-out split, not as many for every stage"
    return [
        ("Prompts", f"{prompts}; nothing was trained on them."),
        ("Exact match", "The task's verifier accepts the answer: the right calls, or none where none is right. Wilson's 95 % interval."),
        ("Call name, argument F1", "Right names of all called functions; F1 of the arguments of same-named calls, where a call is right."),
        (
            "Systems",
            "A student is one greedy call. A teacher is its whole pipeline, less the scoring of its own answer, which only training needs.",
        ),
        ("Tokens", "Generated tokens a prompt, over all model calls: a pipeline's calls add up."),
        ("Latency", "From the prompt to the whole answer, with nothing else in flight, engine warm, no network in between."),
        (
            "Cost",
            f"Price of the whole machine ({price.machine}: {price.description}) times the seconds it was busy with these prompts, "
            f"{report.concurrency} in flight, over the right answers. Start-up, idle time and training are left out.",
        ),
        ("Price", f"${price.usd_per_hour:g} an hour, as of {price.as_of}: {price.source}."),
        (
            "Gate",
            "Both systems on the same prompts; Newcombe's interval of the paired difference (1998, method 10). It passes if the low end is "
            "above minus the margin, fails if the high end is below that, and is inconclusive otherwise.",
        ),
    ]


def _provenance(report: Report) -> list[tuple[str, str]]:
    made = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    models = [(f"Model {stage.name}", stage.model_uri) for stage in report.stages]
    return [("Written", report.date), ("Code", f"revision {report.git_revision}"), ("Versions", made), *models]


def _definition_list(entries: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in entries)
