"""Whether the chain's student can be cut and quantized as it asks, by its shape: known before the first rollout."""

from __future__ import annotations

from pathlib import Path

import torch

from supertiny.artifacts import open_artifact
from supertiny.compress.config import PruneConfig
from supertiny.compress.latency import read_latency
from supertiny.compress.shapes import Shape, check_group_size
from supertiny.compress.solver import limits_of, solve, student_shape, target_of
from supertiny.compress.vocabulary import check_rows, describe_required, read_vocabulary, required_ids
from supertiny.errors import ConfigError
from supertiny.formats import GPU_FORMATS, check_device
from supertiny.llm.folders import read_model_config
from supertiny.pipeline.config import PipelineConfig


def check_compression(config: PipelineConfig) -> None:
    """Solve the cut from the shape that the curriculum starts from, and look whether the formats fit the result.

    Which tokens the rollouts use is not known yet, so a vocabulary that passes here may still turn out to be too small.

    Raises:
        ConfigError: no shape reaches the target, the architecture or the tokenizer cannot be cut, groups do not fit the widths, or a format
            is for GPUs and its stage, or its evaluation, has none.
        MissingInput, CorruptArtifact: the model that is cut, or the latencies that a target in seconds needs.
    """
    for stage in config.quantized:
        check_device(stage.format, stage.place.num_gpus > 0 if stage.place else torch.cuda.is_available())
        if stage.format in GPU_FORMATS and config.evaluate.num_gpus == 0:
            raise ConfigError(f"candidate {stage.name}: format {stage.format} is for GPUs and evaluate.num_gpus is 0; give it one")
    start = origin(config)
    made = {section.name: section.model for section in (config.pretrain_teacher, config.pretrain_base) if section is not None}
    if start in made:
        values = {"model_type": "qwen2", **made[start].sizes()}
        cut = shape_after(config.prune, student_shape(values, config.prune))
    else:
        folder = open_artifact(start, config.run_root, "model").path
        values = read_model_config(folder)
        if start != config.prune.student:  # training writes bfloat16, whatever it started from
            values = {**values, "dtype": "bfloat16"}
        cut = shape_after(config.prune, student_shape(values, config.prune), folder)
    for stage in config.quantized:
        if stage.group_size is not None:
            check_group_size(cut, stage.group_size, stage.tensor_parallel_size)


def origin(config: PipelineConfig) -> str:
    """The model whose shape the cut student has: a transfer changes none."""
    model = config.prune.student
    for stage in reversed(config.transfers):
        model = stage.student if stage.name == model else model
    return model


def shape_after(config: PruneConfig, shape: Shape, folder: Path | None = None) -> Shape:
    """The shape that a cut comes to; raises as `check_compression`.

    Args:
        folder: of a model that is there, whose tokenizer says which tokens have to stay in any case.
    """
    latency = None
    if config.target_seconds_per_token is not None:
        latency = read_latency(open_artifact(config.latency, config.run_root, "latency"))
    limits = limits_of(config)
    if folder is not None and "vocab" in config.axis.split("+"):
        vocabulary = read_vocabulary(folder)
        check_rows(vocabulary, shape.vocab_size)
        required = required_ids(vocabulary, ())
        limits = limits_of(config, len(required), describe_required(vocabulary, required))
    return solve(shape, config.axis, target_of(config, shape, latency), limits)
