"""Which shape to cut to: candidates along vocabulary, depth and width, alone or together, that stock kernels take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

from supertiny.compress.config import AXES, SIZES, Axis, PruneConfig
from supertiny.compress.latency import LatencyModel
from supertiny.compress.shapes import (
    INPUT_MULTIPLE,
    VOCABULARY_MULTIPLE,
    Shape,
    check_heads,
    kernel_problems,
    read_shape,
    share_problems,
    with_hidden_size,
)
from supertiny.errors import ConfigError


@dataclass(frozen=True)
class Target:
    """How small a shape has to be."""

    most: float
    """Parameters, bytes or seconds a token at most."""
    least: float
    """Not below this: a step that overshoots by more is an error."""
    unit: Literal["parameters", "bytes", "seconds"]
    words: str
    """The settings that say so, for messages."""
    latency: LatencyModel | None = None
    """What a target in seconds is foretold by."""

    def measure(self, shape: Shape) -> float:
        """A shape's parameters, its bytes in bfloat16, or its seconds a token."""
        if self.latency is not None:
            return self.latency.seconds_per_token(shape)
        return shape.num_parameters if self.unit == "parameters" else shape.num_bytes()


@dataclass(frozen=True)
class Limits:
    """What a cut may not go beyond."""

    smallest_vocab: int = 2 * VOCABULARY_MULTIPLE
    """Tokens that have to stay."""
    staying: str = "every byte"
    """What they are, for messages."""
    vocab_size: int | None = None
    """The one to take; None leaves it to the solver, as the next two."""
    num_hidden_layers: int | None = None
    intermediate_size: int | None = None
    tensor_parallel_size: int = 1
    """Workers that every layer has to be split over evenly."""
    hidden_size: int | None = None
    """The embedding width to take; None leaves it as it is."""

    def narrowed(self, shape: Shape) -> Shape:
        """A shape with that embedding width; raises as `with_hidden_size`."""
        return shape if self.hidden_size is None else with_hidden_size(shape, self.hidden_size, self.tensor_parallel_size)

    def vocabularies(self, num_rows: int) -> range:
        """Sizes that a vocabulary of so many rows can be cut to."""
        step = VOCABULARY_MULTIPLE * self.tensor_parallel_size
        return range(-(-self.smallest_vocab // step) * step, num_rows, step)


def student_shape(values: Mapping[str, Any], config: PruneConfig) -> Shape:
    """The shape of the student with this `config.json`, which can be cut as a config says.

    Raises:
        ConfigError: as `read_shape`, `with_hidden_size` and `check_heads`; the target is in bytes of bfloat16, and the student's weights
            have others.
    """
    shape = read_shape(values)
    check_heads(limits_of(config).narrowed(shape), config.tensor_parallel_size)
    kind = values.get("dtype") or values.get("torch_dtype") or "bfloat16"
    if config.target_bytes is not None and kind not in ("bfloat16", "float16"):
        raise ConfigError(f"target_bytes counts two bytes a parameter, and a cut of this student stays {kind}; set target_parameters")
    return shape


def target_of(config: PruneConfig, shape: Shape, latency: LatencyModel | None = None) -> Target:
    """The target that a config sets for a student of this shape.

    Args:
        latency: the student's, for a target in seconds.

    Raises:
        ConfigError: the target is not below what the student has; it is in seconds, and the latencies are another student's.
    """
    if config.target_seconds_per_token is not None:
        return _target_in_seconds(config.target_seconds_per_token, config.tolerance_fraction, shape, latency)
    unit: Literal["parameters", "bytes"] = "parameters"
    if config.target_bytes is not None:
        whole, most, unit, words = shape.num_bytes(), config.target_bytes, "bytes", f"target_bytes {config.target_bytes:,}"
    elif config.target_parameters is not None:
        whole, most, words = shape.num_parameters, config.target_parameters, f"target_parameters {config.target_parameters:,}"
    else:
        whole, fraction = shape.num_parameters, config.target_parameters_fraction or 0.0
        most, words = int(fraction * whole), f"target_parameters_fraction {fraction}"
    _check_below(most, whole, words, f"{whole:,} {unit}")
    words += f" (tolerance_fraction {config.tolerance_fraction}) of {whole:,} {unit}"
    return Target(most, most - int(config.tolerance_fraction * whole), unit, words)


def _target_in_seconds(most: float, tolerance: float, shape: Shape, latency: LatencyModel | None) -> Target:
    if latency is None:
        raise ConfigError("target_seconds_per_token needs the student's latencies; measure them with jobs/latency.py")
    latency.check_student(shape)
    whole = latency.seconds_per_token(shape)
    words = f"target_seconds_per_token {most:g}"
    _check_below(most, whole, words, f"{whole:.3g} seconds a token")
    words += f" (tolerance_fraction {tolerance}) of {whole:.3g} seconds, foretold within {latency.worst_error:.1%} of what was measured"
    return Target(most, most - tolerance * whole, "seconds", words, latency)


def _check_below(most: float, whole: float, words: str, of_student: str) -> None:
    if most >= whole:
        raise ConfigError(f"{words} is not below the student's own {of_student}: there is nothing to cut")


def limits_of(config: PruneConfig, smallest_vocab: int = Limits.smallest_vocab, staying: str = Limits.staying) -> Limits:
    """The limits that a config sets, with what has to stay of a vocabulary."""
    pinned = {name: getattr(config, name) for name in (*SIZES.values(), "hidden_size")}
    return Limits(smallest_vocab, staying, tensor_parallel_size=config.tensor_parallel_size, **pinned)


def solve(shape: Shape, axis: Axis, target: Target, limits: Limits = Limits()) -> Shape:
    """The shape to cut to: along one axis the largest that fits, along several the one that shares the cut most evenly.

    Evenly: the largest of the axes' relative cuts is the smallest; of equals the largest shape.

    Raises:
        ConfigError: no shape that stock kernels take meets the target, or they do not take the embedding width; names the nearest ones.
    """
    candidates = list(_candidates(shape, axis, target, limits))
    fitting = [candidate for candidate in candidates if target.least <= target.measure(candidate) <= target.most]
    if fitting:
        return min(fitting, key=lambda candidate: (_largest_cut(shape, candidate, axis), -target.measure(candidate)))
    nearest = sorted(candidates, key=lambda candidate: abs(target.measure(candidate) - target.most))[:2]
    named = " or ".join(f"{describe_cut(candidate, axis, limits)} ({_fraction(shape, candidate, target):.3f})" for candidate in nearest)
    raise ConfigError(f"{target.words}: no {axis} reaches it; the nearest is {named or f'none: {_why_none(shape, axis, limits)}'}")


def solve_all(shape: Shape, target: Target, limits: Limits = Limits(), axes: Sequence[Axis] = AXES) -> dict[Axis, Shape | ConfigError]:
    """What every axis and mix comes to, or why it does not reach the target."""
    found: dict[Axis, Shape | ConfigError] = {}
    for axis in axes:
        try:
            found[axis] = solve(shape, axis, target, limits)
        except ConfigError as error:
            found[axis] = error
    return found


def describe_cut(shape: Shape, axis: Axis, limits: Limits = Limits()) -> str:
    """The sizes along an axis, such as `num_hidden_layers 18`, and the embedding width where it is cut."""
    sizes = [*(["hidden_size"] if limits.hidden_size else []), *(SIZES[part] for part in axis.split("+"))]
    return ", ".join(f"{size} {getattr(shape, size)}" for size in sizes)


def _candidates(shape: Shape, axis: Axis, target: Target, limits: Limits) -> Iterator[Shape]:
    cut = axis.split("+")
    narrow = limits.narrowed(shape)
    layers = _options(shape, "depth", limits) if "depth" in cut else [shape.num_hidden_layers]
    widths = _options(shape, "width", limits) if "width" in cut else [shape.intermediate_size]
    known = set(kernel_problems(shape, limits.tensor_parallel_size))
    for num_layers, width in product(layers, widths):
        candidate = replace(narrow, num_hidden_layers=num_layers, intermediate_size=width)
        if "vocab" in cut:
            for rows in _vocabularies(candidate, target, limits):
                yield from _taken(replace(candidate, vocab_size=rows), known, limits)
        else:
            yield from _taken(candidate, known, limits)


def _sizes(shape: Shape, axis: str, limits: Limits) -> range:
    """Sizes below the present one that kernels and workers take."""
    if axis == "vocab":
        return limits.vocabularies(shape.vocab_size)
    step = 1 if axis == "depth" else INPUT_MULTIPLE * limits.tensor_parallel_size
    return range(step, getattr(shape, SIZES[axis]), step)


def _options(shape: Shape, axis: str, limits: Limits) -> Sequence[int]:
    """Those, of a narrower embedding's feed-forwards the present one, too; or the one of them that the limits name."""
    size, pinned = getattr(shape, SIZES[axis]), getattr(limits, SIZES[axis])
    stays = axis == "width" and limits.hidden_size is not None and size % limits.tensor_parallel_size == 0
    every = [*_sizes(shape, axis, limits), *([size] if stays else [])]
    return every if pinned is None else [pinned] if pinned in every else []


def _vocabularies(shape: Shape, target: Target, limits: Limits) -> Sequence[int]:
    """The largest vocabulary that meets the target, all else given; where none does, the smallest or largest there is."""
    every = limits.vocabularies(shape.vocab_size)
    if not every or limits.vocab_size is not None:
        return _options(shape, "vocab", limits)
    a_row = target.measure(replace(shape, vocab_size=1)) - target.measure(replace(shape, vocab_size=0))
    if a_row == 0:  # measured: rows cost nothing
        return [every[-1]]
    fits = int((target.most - target.measure(replace(shape, vocab_size=0))) // a_row) // every.step * every.step
    return [min(max(fits, every[0]), every[-1])]


def _taken(candidate: Shape, known: set[str], limits: Limits) -> Iterator[Shape]:
    """The candidate, where workers can share it and kernels like nothing less in it than in the student, whose problems are known."""
    workers = limits.tensor_parallel_size
    if not share_problems(candidate, workers) and known.issuperset(kernel_problems(candidate, workers)):
        yield candidate


def _largest_cut(shape: Shape, candidate: Shape, axis: Axis) -> float:
    """0 along one axis, where the size alone decides."""
    parts = axis.split("+")
    if len(parts) == 1:
        return 0.0
    return max(float(1 - getattr(candidate, SIZES[part]) / getattr(shape, SIZES[part])) for part in parts)


def _fraction(shape: Shape, candidate: Shape, target: Target) -> float:
    return target.measure(candidate) / target.measure(shape)


def _why_none(shape: Shape, axis: Axis, limits: Limits) -> str:
    workers, parts = limits.tensor_parallel_size, axis.split("+")
    shareable: dict[str, Any] = {SIZES[part]: workers * INPUT_MULTIPLE for part in parts}
    if problems := share_problems(replace(limits.narrowed(shape), **shareable), workers):
        return f"{' and '.join(problems)}, which a cut of the {axis} leaves as it is"
    return " and ".join(_why_not(shape, part, limits) for part in parts if not _options(shape, part, limits))


def _why_not(shape: Shape, axis: str, limits: Limits) -> str:
    """What keeps an axis from every size, or from the one that the limits name."""
    every, name, size = _sizes(shape, axis, limits), SIZES[axis], getattr(shape, SIZES[axis])
    pinned, must = getattr(limits, name), f"have to stay ({limits.staying})"
    if not every:
        stay = f", {limits.smallest_vocab} of {size} tokens {must} and vocabularies go in steps of {every.step}"
        return f"nothing is left to remove{stay if axis == 'vocab' else f' of {name} {size}'}"
    if axis == "vocab" and pinned < limits.smallest_vocab:
        room = f"{name} {pinned} has no room for the {limits.smallest_vocab} tokens that {must}"
        return f"{room}; take {every[0]}, or more by {every.step}"
    return f"{name} {pinned} is no size below the student's {size} that kernels take ({every[0]} to {every[-1]}, by {every.step})"
