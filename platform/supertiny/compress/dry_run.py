"""What `--dry-run` says of a cut, the shapes that reach the target, and of a format, from the student's config.json alone."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from supertiny.artifacts import open_artifact, resolve
from supertiny.compress.config import AXES, Axis, CompressConfig, PruneConfig, QuantizeConfig
from supertiny.compress.latency import LatencyModel, read_latency
from supertiny.compress.shapes import Shape, check_group_size, kernel_problems, read_shape
from supertiny.compress.solver import Limits, limits_of, solve_all, student_shape, target_of
from supertiny.errors import ConfigError, MissingInput
from supertiny.formats import FORMAT_DEFAULTS, GPU_FORMATS, Format, check_device
from supertiny.llm.folders import read_model_config

log = logging.getLogger(__name__)
FORMS: tuple[Format | None, ...] = (None, "w8a8", "awq_w4a16")
SIZE_COLUMNS = {"vocab": "vocab_size", "layers": "num_hidden_layers", "width": "intermediate_size"}
COLUMNS = ("parameters", "of all", "bf16 MB", "8-bit MB", "4-bit MB")


def describe(config: PruneConfig) -> str:
    """A table of the shapes that every axis and mix reaches, or which of the run's artifacts is not there yet. No weight is read.

    How many tokens have to stay is known once the rollouts are read, so a vocabulary here may turn out to be too small.

    Raises:
        ConfigError: the student cannot be cut, or not to the target along the config's own axis; then the table is logged before.
        MissingInput: nothing is at the student's path, or no model.
        CorruptArtifact: the latencies are damaged.
    """
    needed = [config.student] if config.target_seconds_per_token is None else [config.student, config.latency]
    if missing := _not_made_yet(needed, config.run_root):
        return f"no table of shapes: {missing}"
    shape, latency = student_shape(_student_config(config), config), _latency(config)
    target = target_of(config, shape, latency)
    found = solve_all(shape, target, Limits(tensor_parallel_size=config.tensor_parallel_size))
    found |= solve_all(shape, target, limits_of(config), [config.axis])
    table = f"{target.words}; * is axis {config.axis}\n{shape_table(shape, found, config.axis, config.tensor_parallel_size, latency)}"
    if isinstance(own := found[config.axis], ConfigError):
        log.info("%s", table)
        raise own
    return table


def describe_format(config: QuantizeConfig) -> str:
    """The student's bytes before and after, or that the run has not made it yet. No weight is read.

    Raises:
        ConfigError: as quantizing: the student is quantized already, the groups do not fit its widths, or the format is for a GPU and there
            is none at the config's place.
        MissingInput: nothing is at the student's path, or no model.
    """
    if config.format in GPU_FORMATS:
        check_device(config.format, _has_gpu(config))
    if missing := _not_made_yet([config.student], config.run_root):
        return f"no sizes: {missing}"
    shape = read_shape(_student_config(config))
    if config.group_size:
        check_group_size(shape, config.group_size, config.tensor_parallel_size)
    before, after = shape.num_bytes(), shape.num_bytes(config.format, config.group_size or 1)
    return f"{shape.num_parameters:,} parameters: {before / 1e6:.1f} MB in bfloat16, {after / 1e6:.1f} MB in {config.format}"


def _has_gpu(config: QuantizeConfig) -> bool:
    if config.place is not None:
        return config.place.num_gpus > 0
    import torch  # takes seconds, which only a format for GPUs needs

    return torch.cuda.is_available()


def _not_made_yet(artifacts: Iterable[str], run_root: str) -> str:
    """Which of a run's artifacts a stage before this one still has to make, if any; what is named by a path has to be there."""
    for artifact in artifacts:
        try:
            resolve(artifact, run_root)
        except MissingInput as error:
            if "/" in artifact:
                raise
            return str(error)
    return ""


def _student_config(config: CompressConfig) -> Mapping[str, Any]:
    """Of a model artifact, of any Hugging Face folder, or in a file of whatever name."""
    path = resolve(config.student, config.run_root)
    return read_model_config(path.parent, path.name) if path.is_file() else read_model_config(path)


def _latency(config: PruneConfig) -> LatencyModel | None:
    if config.target_seconds_per_token is None:
        return None
    return read_latency(open_artifact(config.latency, config.run_root, "latency"))


def shape_table(
    shape: Shape,
    found: Mapping[Axis, Shape | ConfigError],
    chosen: Axis,
    tensor_parallel_size: int = 1,
    latency: LatencyModel | None = None,
) -> str:
    """The student and every solved shape, a line each, in columns; then what reaches nothing, and what kernels do not like.

    Args:
        latency: by which a column says what a token is foretold to take.
    """
    solved = {axis: candidate for axis in AXES if isinstance(candidate := found[axis], Shape)}
    narrower = any(each.hidden_size < shape.hidden_size for each in solved.values())
    sizes = SIZE_COLUMNS | ({"embedding": "hidden_size"} if narrower else {})
    named = {"student": shape, **{f"{'* ' * (axis == chosen)}{axis}": each for axis, each in solved.items()}}
    rows = [("axis", *sizes, *COLUMNS), *(_row(name, each, shape, sizes.values(), tensor_parallel_size) for name, each in named.items())]
    if latency is not None:
        times = ["ms a token", *(f"{1000 * latency.seconds_per_token(each):.3g}" for each in named.values())]
        rows = [(*row, time) for row, time in zip(rows, times, strict=True)]
    lines = _columns(rows) + [f"{axis}: {error}" for axis, error in found.items() if isinstance(error, ConfigError)]
    problems = kernel_problems(shape, tensor_parallel_size)
    return "\n".join(lines + [f"the student itself: {problem}" for problem in problems])


def _row(name: str, shape: Shape, student: Shape, sizes: Iterable[str], workers: int) -> tuple[str, ...]:
    megabytes = [f"{shape.num_bytes(form) / 1e6:.1f}" if _has_format(shape, form, workers) else "-" for form in FORMS]
    counts = [f"{count:,}" for count in (*(getattr(shape, size) for size in sizes), shape.num_parameters)]
    return (name, *counts, f"{shape.num_parameters / student.num_parameters:.3f}", *megabytes)


def _has_format(shape: Shape, form: Format | None, workers: int) -> bool:
    """Whether a format's groups, where it has any, divide what they have to."""
    group_size = FORMAT_DEFAULTS.get(form or "", {}).get("group_size")
    try:
        if group_size:
            check_group_size(shape, group_size, workers)
    except ConfigError:
        return False
    return True


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]) for row in rows
    ]
