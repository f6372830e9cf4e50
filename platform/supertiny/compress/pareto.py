"""The Pareto table: several models' quality, cost, bytes and speed, those that another one beats, and the choice. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from supertiny.records import Record

COLUMNS = (
    *("model", "format", "exact match", "USD a million right", "parameters", "MB", "p50 ms a token, batch 1"),
    *("tokens/s at 8", "tokens/s at 32", "KL to its original, nats", "standing"),
)


class Row(Record):
    """One model as measured."""

    name: str
    format: str
    """`bfloat16`, or one of quantizing's."""
    parameters: int
    bytes: int
    quality: float
    """Exact match on held-out prompts."""
    quality_low: float
    quality_high: float
    """Its interval."""
    usd_per_thousand_correct: float | None = None
    """At the speed measured with the most requests in flight; None where nothing was right."""
    seconds_per_token: float = Field(gt=0)
    """Median at batch 1."""
    tokens_per_second: dict[int, float]
    """By requests in flight."""
    kl_nats: float | None = None
    """How far its distributions moved from the model that it was made from; None where nobody measured it."""


def dominated_by(row: Row, rows: Sequence[Row]) -> str | None:
    """The name of a row that is nowhere worse and somewhere better, and that none beats itself; None where there is none.

    Better is: a higher exact match, fewer bytes, fewer seconds a token, more tokens a second at every batch.
    """
    for other in rows:
        pairs = list(zip(_merits(other), _merits(row), strict=True))
        if all(theirs >= ours for theirs, ours in pairs) and any(theirs > ours for theirs, ours in pairs):
            return dominated_by(other, rows) or other.name
    return None


def explain(rows: Sequence[Row], chosen: str, why: str) -> str:
    """The choice in one sentence.

    Args:
        chosen: name of the chosen row.
        why: it was chosen, in a few words.
    """
    row, largest = next(each for each in rows if each.name == chosen), max(rows, key=lambda each: each.bytes)
    size = "it is the largest here" if row.bytes == largest.bytes else f"{row.bytes / largest.bytes:.2f} of the bytes of `{largest.name}`"
    speed = f"{1000 * row.seconds_per_token:.2f} ms a token at batch 1"
    return f"`{row.name}` ({row.format}, {100 * row.quality:.1f} %) is chosen: {why}; {speed}, {size}."


def render(rows: Sequence[Row], chosen: str, notes: Sequence[str]) -> str:
    """The table in Markdown, a paragraph a note below it."""
    lines = ["| " + " | ".join(line) + " |" for line in (COLUMNS, *cells(rows, chosen))]
    lines.insert(1, "|" + "---|" * len(COLUMNS))
    return "\n".join([*lines, *(line for note in notes for line in ("", note)), ""])


def cells(rows: Sequence[Row], chosen: str) -> list[list[str]]:
    """The table's text, a list a row, in the order of `COLUMNS`."""
    return [_cells(row, rows, chosen) for row in rows]


def _cells(row: Row, rows: Sequence[Row], chosen: str) -> list[str]:
    interval = f"{100 * row.quality:.1f} % ({100 * row.quality_low:.1f} to {100 * row.quality_high:.1f})"
    cost = "" if row.usd_per_thousand_correct is None else f"{1000 * row.usd_per_thousand_correct:.3g}"
    size = [f"{row.parameters / 1e6:,.2f} M", f"{row.bytes / 1e6:,.2f}"]
    rates = [f"{row.tokens_per_second[batch]:,.0f}" for batch in (8, 32)]
    kl = "" if row.kl_nats is None else f"{row.kl_nats:.4f}"
    beaten = dominated_by(row, rows)
    standing = ", ".join([*(["chosen"] if row.name == chosen else []), *([f"dominated by {beaten}"] if beaten else [])])
    return [row.name, row.format, interval, cost, *size, f"{1000 * row.seconds_per_token:.2f}", *rates, kl, standing]


def _merits(row: Row) -> list[float]:
    """Numbers of which more is better."""
    return [row.quality, -row.bytes, -row.seconds_per_token, *(rate for _, rate in sorted(row.tokens_per_second.items()))]
