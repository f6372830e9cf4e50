"""How long a token takes by shape: a sum of what layers, feed-forward channels and vocabulary rows cost, fitted to measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from supertiny.artifacts import Artifact
from supertiny.compress.shapes import INPUT_MULTIPLE, VOCABULARY_MULTIPLE, Shape
from supertiny.errors import ConfigError
from supertiny.records import Record

LATENCY = "latency.json"


class MeasuredShape(Record):
    """One shape's median time a token at batch 1."""

    vocab_size: int
    num_hidden_layers: int
    intermediate_size: int
    seconds_per_token: float


class LatencyModel(Record):
    """`seconds = fixed + layers (per_layer + width · per_channel) + vocab · per_row`, of one student's shapes on one machine."""

    fixed: float
    """Seconds a token of everything that no cut changes."""
    per_layer: float
    """Of a layer without its feed-forward."""
    per_channel: float
    """Of a layer's feed-forward channel."""
    per_row: float
    """Of a row of the vocabulary."""
    worst_error: float
    """Largest relative difference from a measured shape."""
    student: dict[str, int | bool | str]
    """The shape that was cut; another model's is not foretold."""
    measured: list[MeasuredShape]

    def seconds_per_token(self, shape: Shape) -> float:
        """Foretold for a cut of the student, batch 1, bfloat16."""
        feed_forward = shape.intermediate_size * self.per_channel
        return self.fixed + shape.num_hidden_layers * (self.per_layer + feed_forward) + shape.vocab_size * self.per_row

    def check_student(self, shape: Shape) -> None:
        """Raise ConfigError where this was measured on cuts of another shape."""
        if asdict(shape) != self.student:
            differing = [name for name, value in asdict(shape).items() if self.student.get(name) != value]
            raise ConfigError(f"the latencies were measured on another student ({', '.join(differing)} differ); run jobs/latency.py again")


def shapes_to_measure(shape: Shape, smallest_vocab: int) -> list[Shape]:
    """The student, and cuts to about half along every axis and along all: enough to tell the axes' costs apart.

    Args:
        smallest_vocab: tokens that have to stay; an axis that cannot be halved is left out.
    """
    halves = {
        "vocab_size": max(_up(shape.vocab_size // 2, VOCABULARY_MULTIPLE), _up(smallest_vocab, VOCABULARY_MULTIPLE)),
        "num_hidden_layers": max(shape.num_hidden_layers // 2, 1),
        "intermediate_size": _up(shape.intermediate_size // 2, INPUT_MULTIPLE),
    }
    smaller: dict[str, Any] = {name: size for name, size in halves.items() if size < getattr(shape, name)}
    if not smaller:
        raise ConfigError("the student is too small for any cut; there is nothing to measure")
    alone = [replace(shape, **dict([cut])) for cut in smaller.items()]
    return [shape, *alone, *([replace(shape, **smaller)] if len(smaller) > 1 else [])]


def fit(shape: Shape, measured: Sequence[MeasuredShape]) -> LatencyModel:
    """Least squares of relative errors, no cost below 0 (Lawson and Hanson's NNLS).

    Args:
        shape: of the student.
    """
    import numpy as np
    from scipy.optimize import nnls

    terms = [[1, each.num_hidden_layers, each.num_hidden_layers * each.intermediate_size, each.vocab_size] for each in measured]
    seconds = np.array([each.seconds_per_token for each in measured])
    scales = np.max(terms, axis=0)  # so that no column is a million times another
    scaled = np.array(terms) / scales
    costs, _ = nnls(scaled / seconds[:, None], np.ones(len(measured)))
    error = float(np.max(np.abs(scaled @ costs / seconds - 1)))
    fixed, per_layer, per_channel, per_row = (float(cost) for cost in costs / scales)
    return LatencyModel(
        fixed=fixed,
        per_layer=per_layer,
        per_channel=per_channel,
        per_row=per_row,
        worst_error=error,
        student=asdict(shape),
        measured=list(measured),
    )


def read_latency(artifact: Artifact) -> LatencyModel:
    """What a `latency` artifact holds."""
    return LatencyModel.model_validate_json((artifact.path / LATENCY).read_text(encoding="utf-8"))


def _up(size: int, step: int) -> int:
    """The next multiple of a step."""
    return -(-size // step) * step
