"""Numbers and verdicts as a person reads them; the page and the terminal table say the same."""

from __future__ import annotations

from math import floor, log10

from supertiny.evaluate.compare import Difference, Interval
from supertiny.evaluate.schema import Arm, GateResult, Recovery, Report, Stage
from supertiny.records import Parity

ARM_COLUMNS = ("requests", "failed", "right", "latency p50", "latency p95", "$ per million requests")
NOTHING = "–"  # noqa: RUF001 - an en dash marks an empty cell
MINUS = "−"  # noqa: RUF001


def percent(value: float | None) -> str:
    """`96.1 %`."""
    return NOTHING if value is None else f"{100 * value:.1f} %"


def interval(value: Interval) -> str:
    """`94.8 to 97.1`, in per cent."""
    return f"{100 * value.low:.1f} to {100 * value.high:.1f}"


def points(value: float) -> str:
    """Percentage points with their sign."""
    return f"{100 * value:+.1f}".replace("-", MINUS)


def gap(difference: Difference) -> str:
    """A difference and its interval, in percentage points."""
    return f"{points(difference.value)} points ({points(difference.low)} to {points(difference.high)})"


def duration(seconds: float | None) -> str:
    """`5.3 ms`, `42.0 ms`, `310 ms`, `1.31 s`, `95 s`, `12.5 min`."""
    if seconds is None:
        return NOTHING
    if seconds < 0.9995:
        return f"{1000 * seconds:.{1 if seconds < 0.09995 else 0}f} ms"
    if seconds < 9.95:
        return f"{seconds:.2f} s"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def usd_per_million(per_thousand: float | None) -> str:
    """`$0.0712`, `$2.10`, `$1,250`: three significant digits, and a unit in which a tiny model's cost is readable."""
    if per_thousand is None:
        return NOTHING
    value = 1000 * per_thousand
    digits = max(0, 2 - floor(log10(value))) if value > 0 else 2
    return f"${value:,.{min(digits, 9) if value < 100 else 0}f}"


def size(num_bytes: int) -> str:
    """`6.83 MB`, `1.02 GB`."""
    return f"{num_bytes / 1e6:.2f} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:.2f} GB"


def count(parameters: int) -> str:
    """`3.41 M`."""
    return f"{parameters / 1e6:.2f} M"


def times(value: float) -> str:
    """`3.1 x`, `0.55 x`."""
    return f"{value:.1f} ×" if value >= 1.95 else f"{value:.2f} ×"  # noqa: RUF001 - the sign of multiplication


def arm(served: Arm) -> list[str]:
    """Requests, failed, right, p50, p95 and cost of one arm."""
    p50, p95 = (served.latency_seconds.p50, served.latency_seconds.p95) if served.latency_seconds else (None, None)
    times, cost = (duration(p50), duration(p95)), usd_per_million(served.usd_per_thousand_requests)
    return [f"{served.requests:,}", f"{served.failed:,}", percent(served.correct_fraction), *times, cost]


def stage(report: Report, name: str) -> Stage | None:
    """A report's stage by name."""
    return next((one for one in report.stages if one.name == name), None)


def called(name: str, system: str) -> str:
    """A stage in running text: a teacher is its whole pipeline."""
    return f"the {name} pipeline" if system == "teacher" else name


def headline(gate: GateResult, baseline: str) -> str:
    """The verdict in one line."""
    ends = {
        "pass": f"may replace {baseline}",
        "fail": f"must not replace {baseline}",
        "inconclusive": f"is not shown to be good enough to replace {baseline}",
    }
    return f"{gate.candidate} {ends[gate.verdict]}"


def explanation(gate: GateResult) -> str:
    """Why the verdict is what it is."""
    reasons = {
        "pass": "even the low end of the interval is above the loss that was allowed beforehand",
        "fail": "even the high end of the interval is below the loss that was allowed beforehand",
        "inconclusive": "the interval reaches across the loss that was allowed beforehand, so more prompts or a better model are needed",
    }
    return (
        f"On the same {gate.n:,} held-out prompts, the exact match of {gate.candidate} minus that of {gate.baseline} is "
        f"{gap(gate.difference)}, {100 * gate.confidence:g} % interval of the paired difference; {MINUS}{100 * gate.margin:g} points were "
        f"allowed. {gate.verdict.capitalize()}: {reasons[gate.verdict]}."
    )


def recovered(recovery: Recovery) -> str:
    """Which round's model went on, and why healing ended."""
    reasons = {
        "enough": "the whole interval of its loss lies within them",
        "rounds": "no round was surely within them, and it is the best of those that were to be made",
        "tokens": "no round was surely within them, and it is the best that the training tokens were enough for",
    }
    allowed = f"{100 * recovery.margin:g} points of exact match may be lost against {recovery.baseline.removeprefix('eval-')}"
    return f"{allowed}. {recovery.model} went on: {reasons[recovery.ended]}."


def proof(parity: Parity | None, candidate: str) -> str:
    """Whether what would be served is what was evaluated."""
    if parity is None:
        return f"That vLLM serves {candidate} as it was evaluated has not been proven (jobs/parity.py)."
    found = (
        f"KL {parity.kl_nats:.2g} nats a token and the same likeliest token at {percent(parity.greedy_agreement)} of "
        f"{parity.positions:,} positions, between vLLM and Hugging Face"
    )
    if parity.verdict == "pass":
        return f"What vLLM serves is what was evaluated: {found}." + (f" {not_compared(parity)}." if parity.not_compared else "")
    return f"What vLLM serves is not what was evaluated: {'; '.join(parity.problems)} ({found})."


def not_compared(parity: Parity) -> str:
    """What a proof did not look at, and why."""
    return f"Its tokenizer and template were not compared with those of a model before it: {parity.not_compared}"
