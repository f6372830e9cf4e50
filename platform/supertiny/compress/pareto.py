"""Which of several models to serve: rows of quality, bytes and speed, those that another row beats, and the choice. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from supertiny.errors import ConfigError
from supertiny.records import Record

COLUMNS = (
    *("model", "format", "exact match", "parameters", "MB", "p50 ms a token, batch 1", "tokens/s at 8", "tokens/s at 32"),
    *("", "KL to its original, nats"),
)
CHOSEN = "chosen"
"""The mark of the row to serve."""


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


def choose(rows: Sequence[Row], margin: float) -> Row:
    """The fastest at batch 1 of the rows whose exact match is at most `margin` below the best; of equals the smallest.

    Raises:
        ConfigError: there are no rows.
    """
    if not rows:
        raise ConfigError("there is no model to choose from")
    best = max(row.quality for row in rows)
    near = [row for row in rows if row.quality >= best - margin]
    return min(near, key=lambda row: (row.seconds_per_token, row.bytes))


def explain(rows: Sequence[Row], margin: float) -> str:
    """The choice in one sentence."""
    chosen, best = choose(rows, margin), max(rows, key=lambda row: row.quality)
    near = sum(row.quality >= best.quality - margin for row in rows)
    largest = max(rows, key=lambda row: row.bytes)
    return (
        f"`{chosen.name}` ({chosen.format}) is chosen: of the {near} of {len(rows)} models within {100 * margin:g} points of the best "
        f"(`{best.name}`, {100 * best.quality:.1f} %), it takes the least time a token at batch 1 "
        f"({1000 * chosen.seconds_per_token:.2f} ms), in {chosen.bytes / largest.bytes:.2f} of the bytes of `{largest.name}`."
    )


def render(rows: Sequence[Row], margin: float) -> str:
    """The table in Markdown, the choice below it."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join("**chosen**" if cell == CHOSEN else cell for cell in line) + " |" for line in cells(rows, margin)]
    return "\n".join([*lines, "", explain(rows, margin), ""])


def cells(rows: Sequence[Row], margin: float) -> list[list[str]]:
    """The table's text, a list a row, in the order of `COLUMNS`."""
    return [_cells(row, rows, choose(rows, margin)) for row in rows]


def _cells(row: Row, rows: Sequence[Row], chosen: Row) -> list[str]:
    beaten = dominated_by(row, rows)
    mark = CHOSEN if row == chosen else f"dominated by {beaten}" if beaten else ""
    interval = f"{100 * row.quality:.1f} % ({100 * row.quality_low:.1f} to {100 * row.quality_high:.1f})"
    rates = [f"{row.tokens_per_second[batch]:,.0f}" for batch in (8, 32)]
    size = [f"{row.parameters / 1e6:,.2f} M", f"{row.bytes / 1e6:,.2f}"]
    kl = "" if row.kl_nats is None else f"{row.kl_nats:.4f}"
    return [row.name, row.format, interval, *size, f"{1000 * row.seconds_per_token:.2f}", *rates, mark, kl]


def _merits(row: Row) -> list[float]:
    """Numbers of which more is better."""
    return [row.quality, -row.bytes, -row.seconds_per_token, *(rate for _, rate in sorted(row.tokens_per_second.items()))]
