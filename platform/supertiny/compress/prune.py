"""Prune a student: remove the tokens, the channels or the layers that its own traffic uses least."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from supertiny.artifacts import Artifact, find_made, make, open_artifact
from supertiny.compress.calibration import Batch, calibration_rows, equal_length_batches
from supertiny.compress.config import PruneConfig
from supertiny.compress.export import copy_unchanged, divergence, weight_bytes
from supertiny.compress.importance import (
    channel_importance,
    embedding_importance,
    embedding_norms,
    head_importance,
    keep_layers,
    kept_channels,
    kept_heads,
    layers_to_keep,
)
from supertiny.compress.latency import LatencyModel, read_latency
from supertiny.compress.retokenize import check_tokenizer, publish_renumbered, used_ids
from supertiny.compress.shapes import Shape, read_shape, shrink_config
from supertiny.compress.solver import limits_of, solve, student_shape, target_of
from supertiny.compress.vocabulary import (
    choose_ids,
    describe_required,
    named_ids,
    read_vocabulary,
    renumber_settings,
    required_ids,
    write_tokenizer,
)
from supertiny.config import StageConfig
from supertiny.llm.folders import read_model_config
from supertiny.rollout_table import iter_rollouts

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cut:
    """What to cut a model to, and how what goes is chosen."""

    shape: Shape
    layers: Literal["chosen", "contiguous"] = "chosen"
    influence: Literal["similarity", "loss"] = "similarity"
    kept_ids: Sequence[int] | None = None
    """Ids of the tokens that stay, rising; None keeps all."""


def prune(config: PruneConfig) -> Artifact:
    """The pruned student, a plain model folder; its metrics say what was removed and how far its distributions moved.

    With a cut vocabulary it also publishes `<name>-rollouts`, the rollouts in the new token ids, for healing and quantizing.

    Raises:
        ConfigError: no kernel-friendly shape reaches the target, or the vocabulary would lose a token that has to stay; raised before any
            weight is read.
        CorruptArtifact: a rollout's tokens are not the student's; where the vocabulary is cut, raised before any weight is read, too. Or
            it was cut before the rollouts were made again, which have a token that it lost.
    """
    student = open_artifact(config.student, config.run_root, "model")
    rollouts = open_artifact(config.rollouts, config.run_root, "rollouts")
    parents = {"student": student, "rollouts": rollouts}
    if config.target_seconds_per_token is not None:
        parents["latency"] = open_artifact(config.latency, config.run_root, "latency")
    model = find_made(config, "model", parents) or _make(config, parents)
    if "vocab" in config.axis.split("+"):
        stage = _rollouts_stage(config)
        publish_renumbered(stage, rollouts, model)
        log.info("%s has its own tokens: heal, quantize and prove it with rollouts %s", config.name, stage.name)
    return model


def _make(config: PruneConfig, parents: Mapping[str, Artifact]) -> Artifact:
    student, rollouts = parents["student"], parents["rollouts"]
    cut = plan(config, student.path, rollouts.path, read_latency(parents["latency"]) if "latency" in parents else None)

    def build(folder: Path) -> dict[str, Any]:
        tokenizer = AutoTokenizer.from_pretrained(student.path)
        rows = calibration_rows(tokenizer, iter_rollouts(rollouts.path, top_k=False), config.num_rows, config.max_row_tokens)
        before = read_shape(read_model_config(student.path)).num_parameters
        log.info("%s: %s to %s parameters on %d rows", config.name, f"{before:,}", f"{cut.shape.num_parameters:,}", len(rows))
        batches = equal_length_batches(rows)
        removed = write_pruned(student.path, folder, cut, batches)
        if cut.kept_ids is not None:
            check_tokenizer(student.path, folder, cut.kept_ids, rows)
        moved = divergence(student.path, folder, batches, cut.kept_ids)
        return {"parameters": cut.shape.num_parameters, "bytes": weight_bytes(folder), **removed, **moved}

    return make(config, "model", parents, build)


def plan(config: PruneConfig, student: Path, rollouts: Path, latency: LatencyModel | None = None) -> Cut:
    """The shape to cut to and, where the vocabulary is cut, its tokens; raises as `prune`."""
    shape = student_shape(read_model_config(student), config)
    target = target_of(config, shape, latency)
    ways: dict[str, Any] = {"layers": config.layers or "chosen", "influence": config.influence or "similarity"}
    if "vocab" not in config.axis.split("+"):
        return Cut(solve(shape, config.axis, target, limits_of(config)), **ways)
    vocabulary = read_vocabulary(student)
    used = used_ids(AutoTokenizer.from_pretrained(student), iter_rollouts(rollouts, top_k=False))
    required = required_ids(vocabulary, used | named_ids(student, shape.vocab_size))
    limits = limits_of(config, len(required), describe_required(vocabulary, required))
    smaller = solve(shape, config.axis, target, limits)
    return Cut(smaller, kept_ids=choose_ids(vocabulary, required, smaller.vocab_size, shape.vocab_size), **ways)


def write_pruned(source: Path, folder: Path, cut: Cut, batches: Sequence[Batch]) -> dict[str, Any]:
    """Write the model in `source`, cut to a shape of fewer layers, narrower feed-forwards or embedding or fewer tokens, into `folder`.

    Returns:
        `removed_layers` (their indices), `removed_channels_per_layer` and, of what else is cut, how many: `removed_embedding_channels`,
        `removed_heads` (of every layer) and `removed_tokens`.
    """
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    dtype, config = model.dtype, model.config.to_dict()
    model.float()
    layers = _cut_layers(model, cut, batches)
    _cut_channels(model, cut.shape.intermediate_size, batches)
    _cut_embedding(model, cut.shape.hidden_size, batches)
    _cut_heads(model, cut.shape, batches)
    if cut.kept_ids is not None:
        keep_tokens(model, cut.kept_ids)
    smaller = shrink_config(config, cut.shape, layers)
    model.config = type(model.config).from_dict(smaller if cut.kept_ids is None else renumber_settings(smaller, cut.kept_ids))
    model.to(dtype).save_pretrained(folder)
    copy_unchanged(source, folder)
    removed: dict[str, Any] = {
        "removed_layers": sorted(set(range(config["num_hidden_layers"])) - set(layers)),
        "removed_channels_per_layer": config["intermediate_size"] - cut.shape.intermediate_size,
    }
    if cut.kept_ids is not None:
        write_tokenizer(source, folder, cut.kept_ids)
    counts = {"embedding_channels": "hidden_size", "heads": "num_attention_heads", "tokens": "vocab_size"}
    fewer = {f"removed_{name}": config[size] - getattr(cut.shape, size) for name, size in counts.items()}
    return {**removed, **{name: number for name, number in fewer.items() if number}}


def keep_channels(feed_forward: Any, kept: torch.Tensor) -> None:
    """Cut a gated feed-forward block to some of its channels, in place: rows of gate and up, columns of down."""
    _keep_outputs(feed_forward.gate_proj, kept)
    _keep_outputs(feed_forward.up_proj, kept)
    _keep_inputs(feed_forward.down_proj, kept)


def keep_heads(attention: Any, kept: torch.Tensor) -> None:
    """Cut an attention block to some of its query heads, in place: of every key-value head equally many, and those stay."""
    rows = (kept[:, None] * attention.head_dim + torch.arange(attention.head_dim)).flatten()
    attention.num_key_value_groups = attention.num_key_value_groups * len(rows) // attention.q_proj.out_features
    _keep_outputs(attention.q_proj, rows)
    _keep_inputs(attention.o_proj, rows)


def keep_embedding(model: Any, kept: torch.Tensor, squares: Sequence[torch.Tensor]) -> None:
    """Cut a model to some of its embedding's channels, in place: what reads the hidden state, and what adds to it.

    A norm then divides by the root mean square of the kept channels, not of all, so its weights take the ratio: its output keeps its scale.

    Args:
        squares: float (D,) of every norm, the mean square of what it reads.
    """
    for norm, squares_D in zip(embedding_norms(model), squares, strict=True):
        ratio = (squares_D[kept].mean() / squares_D.mean()).sqrt()
        norm.weight = torch.nn.Parameter(norm.weight.detach()[kept] * ratio)
    for layer in model.model.layers:
        attention, feed_forward = layer.self_attn, layer.mlp
        for reader in (attention.q_proj, attention.k_proj, attention.v_proj, feed_forward.gate_proj, feed_forward.up_proj):
            _keep_inputs(reader, kept)
        for writer in (attention.o_proj, feed_forward.down_proj):
            _keep_outputs(writer, kept)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head.weight is embedding.weight
    embedding.weight = torch.nn.Parameter(embedding.weight.detach()[:, kept].contiguous())
    embedding.embedding_dim = len(kept)
    _keep_inputs(head, kept)
    if tied:
        head.weight = embedding.weight


def keep_tokens(model: Any, kept_ids: Sequence[int]) -> None:
    """Cut the embedding and the output head to some of their rows, in place; where they share their weight, they go on sharing it."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head.weight is embedding.weight
    kept = torch.tensor(list(kept_ids))
    embedding.weight = torch.nn.Parameter(embedding.weight.detach()[kept])
    embedding.num_embeddings, embedding.padding_idx = len(kept), None
    head.weight = embedding.weight if tied else torch.nn.Parameter(head.weight.detach()[kept])
    head.out_features = len(kept)


def _cut_layers(model: Any, cut: Cut, batches: Sequence[Batch]) -> list[int]:
    """Remove layers in place; the indices of those that stay."""
    if cut.shape.num_hidden_layers == len(model.model.layers):
        return list(range(cut.shape.num_hidden_layers))
    layers = layers_to_keep(model, batches, cut.shape.num_hidden_layers, cut.layers, cut.influence)
    keep_layers(model, layers)
    return layers


def _cut_channels(model: Any, width: int, batches: Sequence[Batch]) -> None:
    if width == model.config.intermediate_size:
        return
    for layer, importance_F in zip(model.model.layers, channel_importance(model, batches), strict=True):
        keep_channels(layer.mlp, kept_channels(importance_F, width))


def _cut_heads(model: Any, shape: Shape, batches: Sequence[Batch]) -> None:
    if shape.num_attention_heads == model.config.num_attention_heads:
        return
    for layer, importance_H in zip(model.model.layers, head_importance(model, batches), strict=True):
        keep_heads(layer.self_attn, kept_heads(importance_H, shape.num_attention_heads, shape.num_key_value_heads))


def _cut_embedding(model: Any, width: int, batches: Sequence[Batch]) -> None:
    if width < model.config.hidden_size:
        importance_D, squares = embedding_importance(model, batches)
        keep_embedding(model, kept_channels(importance_D, width), squares)


def _keep_outputs(linear: Any, kept: torch.Tensor) -> None:
    linear.weight = torch.nn.Parameter(linear.weight.detach()[kept])
    if linear.bias is not None:
        linear.bias = torch.nn.Parameter(linear.bias.detach()[kept])
    linear.out_features = len(kept)


def _keep_inputs(linear: Any, kept: torch.Tensor) -> None:
    linear.weight = torch.nn.Parameter(linear.weight.detach()[:, kept].contiguous())
    linear.in_features = len(kept)


def _rollouts_stage(config: PruneConfig) -> StageConfig:
    shared = {name: getattr(config, name) for name in StageConfig.model_fields}
    return StageConfig(**{**shared, "name": f"{config.name}-rollouts"})
