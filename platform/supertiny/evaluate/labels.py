"""Labels beside the points of a plot, placed so that they cover neither each other nor the points."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, hypot, pi, sin
from typing import NamedTuple

from matplotlib.axes import Axes

_DIRECTIONS = [2 * pi * step / 16 for step in range(16)]
_DISTANCES = (9.0, 16.0, 26.0, 38.0)
_HEIGHT = 11.0
_PER_LETTER = 5.2
_FONT_SIZE = 9.0
"""Points; text of 9 points is about so wide, and the plot's font is the reader's, so nobody knows exactly."""


class Box(NamedTuple):
    """A rectangle, in points."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """Shared area."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(width, 0.0) * max(height, 0.0)


def place_labels(
    axes: Axes,
    texts: Sequence[str],
    anchors: Sequence[tuple[float, float]],
    bars: Sequence[tuple[float, float]],
    colours: Sequence[str],
) -> None:
    """Annotate each point, with a thin line to it where its label had to move away.

    Args:
        anchors: the points, in data coordinates.
        bars: low and high end of each point's vertical interval.
    """
    scale = 72 / axes.figure.dpi
    points = [_pixels(axes, *anchor, scale) for anchor in anchors]
    spans = [(_pixels(axes, x, low, scale)[1], _pixels(axes, x, high, scale)[1]) for (x, _), (low, high) in zip(anchors, bars, strict=True)]
    frame = Box(*(value * scale for value in axes.get_window_extent().extents))
    taken = [Box(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    taken += [Box(x - 2, low, x + 2, high) for (x, _), (low, high) in zip(points, spans, strict=True)]
    for text, (x, y), anchor, colour in zip(texts, points, anchors, colours, strict=True):
        dx, dy, box = min(_candidates(text, x, y), key=lambda candidate: _cost(candidate, taken, frame))
        taken.append(box)
        line = {"arrowstyle": "-", "color": colour, "lw": 0.6, "shrinkA": 1, "shrinkB": 4} if hypot(dx, dy) > 20 else None
        axes.annotate(
            text,
            anchor,
            xytext=(dx, dy),
            textcoords="offset points",
            ha=_side(dx),
            va="center",
            color=colour,
            fontsize=_FONT_SIZE,
            arrowprops=line,
        )


def _candidates(text: str, x: float, y: float) -> list[tuple[float, float, Box]]:
    """Offsets to try, nearest first, with the box that the text would fill."""
    width = _PER_LETTER * len(text)
    found = []
    for distance in _DISTANCES:
        for direction in _DIRECTIONS:
            dx, dy = distance * cos(direction), distance * sin(direction)
            left = x + dx - {"left": 0, "right": width, "center": width / 2}[_side(dx)]
            found.append((dx, dy, Box(left - 1, y + dy - _HEIGHT / 2, left + width + 1, y + dy + _HEIGHT / 2)))
    return found


def _cost(candidate: tuple[float, float, Box], taken: Sequence[Box], frame: Box) -> float:
    dx, dy, box = candidate
    outside = (box.right - box.left) * (box.top - box.bottom) - box.overlap(frame)
    return 4 * sum(box.overlap(other) for other in taken) + 4 * outside + 0.4 * hypot(dx, dy)


def _side(dx: float) -> str:
    if abs(dx) < 3:
        return "center"
    return "left" if dx > 0 else "right"


def _pixels(axes: Axes, x: float, y: float, scale: float) -> tuple[float, float]:
    where = axes.transData.transform((x, y))
    return float(where[0]) * scale, float(where[1]) * scale
