"""Prune a student: remove the feed-forward channels or the layers that its own traffic uses least."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from supertiny.artifacts import Artifact, make, open_artifact
from supertiny.compress.calibration import Batch, calibration_rows, equal_length_batches
from supertiny.compress.config import PruneConfig
from supertiny.compress.export import copy_unchanged, divergence, weight_bytes
from supertiny.compress.shapes import Shape, read_shape, shrink_config
from supertiny.compress.solver import limits_of, solve, target_of
from supertiny.rollout_table import read_rollouts

log = logging.getLogger(__name__)


def prune(config: PruneConfig) -> Artifact:
    """The pruned student, a plain model folder; its metrics say what was removed and how far its distributions moved.

    Raises:
        ConfigError: no kernel-friendly shape reaches the target; raised before any weight is read.
    """
    student = open_artifact(config.student, config.run_root, "model")
    rollouts = open_artifact(config.rollouts, config.run_root, "rollouts")
    shape = read_shape(json.loads((student.path / "config.json").read_text()))
    smaller = solve(shape, config.axis, target_of(config, shape), limits_of(config))

    def build(folder: Path) -> dict[str, Any]:
        tokenizer = AutoTokenizer.from_pretrained(student.path)
        rows = calibration_rows(tokenizer, read_rollouts(rollouts.path), config.num_rows, config.max_row_tokens)
        log.info("%s: %s to %s parameters on %d rows", config.name, f"{shape.num_parameters:,}", f"{smaller.num_parameters:,}", len(rows))
        batches = equal_length_batches(rows)
        removed = write_pruned(student.path, folder, smaller, batches)
        moved = divergence(student.path, folder, batches)
        return {"parameters": smaller.num_parameters, "bytes": weight_bytes(folder), **removed, **moved}

    return make(config, "model", {"student": student, "rollouts": rollouts}, build)


def write_pruned(source: Path, folder: Path, smaller: Shape, batches: Sequence[Batch]) -> dict[str, Any]:
    """Write the model in `source`, cut to a shape of fewer layers or narrower feed-forwards, into `folder`.

    Returns:
        `removed_layers` (their indices) and `removed_channels_per_layer` (how many).
    """
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    dtype, config = model.dtype, model.config.to_dict()
    model.float()
    num_layers, width = config["num_hidden_layers"], config["intermediate_size"]
    layers = list(range(num_layers))
    if smaller.num_hidden_layers < num_layers:
        layers = kept_layers(block_influence(model, batches), smaller.num_hidden_layers)
        model.model.layers = torch.nn.ModuleList(model.model.layers[layer] for layer in layers)
    if smaller.intermediate_size < width:
        for layer, importance_F in zip(model.model.layers, channel_importance(model, batches), strict=True):
            keep_channels(layer.mlp, kept_channels(importance_F, smaller.intermediate_size))
    model.config = type(model.config).from_dict(shrink_config(config, smaller, layers))
    model.to(dtype).save_pretrained(folder)
    copy_unchanged(source, folder)
    return {
        "removed_layers": sorted(set(range(num_layers)) - set(layers)),
        "removed_channels_per_layer": width - smaller.intermediate_size,
    }


def kept_layers(influence: Sequence[float], num_kept: int) -> list[int]:
    """Indices of the most influential layers, in their order."""
    ranked = sorted(range(len(influence)), key=lambda layer: influence[layer], reverse=True)
    return sorted(ranked[:num_kept])


def kept_channels(importance_F: torch.Tensor, num_kept: int) -> torch.Tensor:
    """Int (num_kept,): the most important of F channels, in their order."""
    return importance_F.topk(num_kept).indices.sort().values


def keep_channels(feed_forward: Any, kept: torch.Tensor) -> None:
    """Cut a gated feed-forward block to some of its channels, in place: rows of gate and up, columns of down."""
    for linear in (feed_forward.gate_proj, feed_forward.up_proj):
        linear.weight = torch.nn.Parameter(linear.weight.detach()[kept])
        linear.out_features = len(kept)
    feed_forward.down_proj.weight = torch.nn.Parameter(feed_forward.down_proj.weight.detach()[:, kept].contiguous())
    feed_forward.down_proj.in_features = len(kept)


def channel_importance(model: Any, batches: Sequence[Batch]) -> list[torch.Tensor]:
    """Float (F,) a layer: mean |activation| of a feed-forward channel times the norm of the column of `down_proj` that reads it.

    The mean activation is Minitron's importance of a feed-forward neuron (arXiv 2407.14679), its product with the weight is Wanda's
    (arXiv 2306.11695): a channel that is always 0, or that nothing reads, scores 0.
    """
    readers = [layer.mlp.down_proj for layer in model.model.layers]
    sums = [torch.zeros(linear.in_features) for linear in readers]

    def add(index: int, activation_BTF: torch.Tensor, _: torch.Tensor) -> None:
        sums[index] += activation_BTF.abs().sum(dim=(0, 1))

    tokens = _observe(model, batches, readers, add)
    return [total / tokens * linear.weight.detach().norm(dim=0) for total, linear in zip(sums, readers, strict=True)]


def block_influence(model: Any, batches: Sequence[Batch]) -> list[float]:
    """A layer's influence: 1 - mean cosine of the hidden state before and after it, in [0, 2] (ShortGPT, arXiv 2403.03853).

    Taken at the layers themselves, since the last of a model's `hidden_states` has already gone through the final norm.
    """
    sums = [0.0] * len(model.model.layers)

    def add(index: int, before_BTD: torch.Tensor, after_BTD: torch.Tensor) -> None:
        sums[index] += torch.cosine_similarity(before_BTD, after_BTD, dim=-1).sum().item()

    tokens = _observe(model, batches, model.model.layers, add)
    return [1 - total / tokens for total in sums]


@torch.inference_mode()
def _observe(
    model: Any, batches: Sequence[Batch], modules: Iterable[torch.nn.Module], add: Callable[[int, torch.Tensor, torch.Tensor], None]
) -> int:
    """Run the rows through the model and hand every module's first input and its output to `add`, with the module's index.

    Returns:
        How many tokens were run.
    """
    with _hooks(modules, add):
        for batch in batches:
            model.model(input_ids=torch.tensor(batch), use_cache=False)
    return sum(len(row) for batch in batches for row in batch)


@contextmanager
def _hooks(modules: Iterable[torch.nn.Module], add: Callable[[int, torch.Tensor, torch.Tensor], None]) -> Iterator[None]:
    def hook_of(index: int) -> Callable[..., None]:
        return lambda _, inputs, output: add(index, inputs[0], output)

    handles = [module.register_forward_hook(hook_of(index)) for index, module in enumerate(modules)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
