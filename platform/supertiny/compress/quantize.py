"""Quantize a student with LLM Compressor: 4-bit weights by AWQ or GPTQ, or 8-bit weights and activations; vLLM loads them all."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from llmcompressor.entrypoints.oneshot import oneshot
from llmcompressor.logger import LoggerConfig, configure_logger
from llmcompressor.modifiers import Modifier
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

from supertiny.artifacts import Artifact, make, open_artifact
from supertiny.compress.calibration import Batch, calibration_rows, equal_length_batches
from supertiny.compress.config import QuantizeConfig
from supertiny.compress.export import copy_unchanged, divergence, weight_bytes
from supertiny.compress.shapes import check_group_size, read_shape
from supertiny.formats import NOT_QUANTIZED, check_device, scheme_of
from supertiny.llm.folders import read_model_config
from supertiny.rollout_table import iter_rollouts

log = logging.getLogger(__name__)


def quantize(config: QuantizeConfig) -> Artifact:
    """The quantized student, compressed on disk; its metrics count the parameters it stands for, and its bytes.

    Raises:
        ConfigError: the student is quantized already, the groups do not fit its widths or a worker's share of them, or the format is for a
            GPU and here is none.
    """
    check_device(config.format, torch.cuda.is_available())
    student = open_artifact(config.student, config.run_root, "model")
    rollouts = open_artifact(config.rollouts, config.run_root, "rollouts")
    shape = read_shape(read_model_config(student.path))
    if config.group_size:
        check_group_size(shape, config.group_size, config.tensor_parallel_size)

    def build(folder: Path) -> dict[str, Any]:
        tokenizer = AutoTokenizer.from_pretrained(student.path)
        rows = calibration_rows(tokenizer, iter_rollouts(rollouts.path, top_k=False), config.num_rows, config.max_row_tokens)
        log.info("%s: %s on %d rows", config.name, config.format, len(rows))
        batches = equal_length_batches(rows)
        write_quantized(student.path, folder, recipe(config), batches)
        moved = divergence(student.path, folder, batches)
        return {"parameters": shape.num_parameters, "bytes": weight_bytes(folder), "format": config.format, **moved}

    return make(config, "model", {"student": student, "rollouts": rollouts}, build)


def recipe(config: QuantizeConfig) -> list[Modifier]:
    """LLM Compressor's steps for a format."""
    groups = {"group_0": scheme_of(config.format, config.group_size)}
    if config.rounding == "nearest" or config.format == "fp8_dynamic":
        return [QuantizationModifier(config_groups=groups, ignore=NOT_QUANTIZED)]
    if config.format == "awq_w4a16":
        return [AWQModifier(n_grid=config.num_scales), QuantizationModifier(config_groups=groups, ignore=NOT_QUANTIZED)]
    rounded = GPTQModifier(config_groups=groups, ignore=NOT_QUANTIZED)
    if config.smoothing_strength is None:
        return [rounded]
    return [SmoothQuantModifier(smoothing_strength=config.smoothing_strength), rounded]


def write_quantized(source: Path, folder: Path, steps: list[Modifier], batches: Sequence[Batch]) -> None:
    """Write the model in `source` quantized by a recipe into `folder`, its weights packed."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    with _quiet(), _unpinned_without_accelerator():
        oneshot(model=model, processor=str(source), dataset=_loader(batches), recipe=steps)
        model.save_pretrained(folder, save_compressed=True)
    copy_unchanged(source, folder)


def _loader(batches: Sequence[Batch]) -> DataLoader[Any]:
    inputs: Any = [{"input_ids": torch.tensor(batch)} for batch in batches]
    return DataLoader(inputs, batch_size=None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep LLM Compressor's hundreds of progress lines and repeated warnings (no accelerator) for the debug log."""
    configure_logger(LoggerConfig(console_log_level="ERROR", metrics_disabled=True))
    shown = io.StringIO()
    try:
        with redirect_stderr(shown):
            yield
    finally:
        log.debug("LLM Compressor: %s", shown.getvalue())


@contextmanager
def _unpinned_without_accelerator() -> Iterator[None]:
    """Let AWQ run on a CPU.

    LLM Compressor 0.13 and 0.14 pin AWQ's cached activations for faster copies to an accelerator, and torch raises where there is none.
    """
    pin_memory = IntermediatesCache.pin_memory
    if not torch.accelerator.is_available():
        IntermediatesCache.pin_memory = lambda *_: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        IntermediatesCache.pin_memory = pin_memory  # type: ignore[method-assign]
