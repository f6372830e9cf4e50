"""Which layers, heads and channels a student's own traffic uses least."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch

from supertiny.compress.calibration import MAX_BATCH_TOKENS, Batch
from supertiny.compress.logits import logits_by_part

NO_TARGET = -100
"""Behind a row's last token, which nothing follows."""


def layers_to_keep(
    model: Any, batches: Sequence[Batch], num_kept: int, layers: Literal["chosen", "contiguous"], influence: Literal["similarity", "loss"]
) -> list[int]:
    """Indices of the layers to keep, in their order, by one of the ways of `PruneConfig.layers` and `influence`."""
    num_layers = len(model.model.layers)
    if layers == "contiguous":
        distances = window_influence(model, batches, num_layers - num_kept)
        first = min(range(len(distances)), key=lambda start: distances[start])
        return [layer for layer in range(num_layers) if not first <= layer < first + num_layers - num_kept]
    return kept_layers((loss_influence if influence == "loss" else block_influence)(model, batches), num_kept)


def kept_layers(influence: Sequence[float], num_kept: int) -> list[int]:
    """Indices of the most influential layers, in their order."""
    ranked = sorted(range(len(influence)), key=lambda layer: influence[layer], reverse=True)
    return sorted(ranked[:num_kept])


def kept_channels(importance_F: torch.Tensor, num_kept: int) -> torch.Tensor:
    """Int (num_kept,): the most important of F channels, in their order."""
    return importance_F.topk(num_kept).indices.sort().values


def kept_heads(importance_H: torch.Tensor, num_kept: int, num_groups: int) -> torch.Tensor:
    """Int (num_kept,): of every group of neighbours among H heads equally many, the most important, in their order."""
    importance_GH = importance_H.view(num_groups, -1)
    kept_GH = importance_GH.topk(num_kept // num_groups, dim=1).indices.sort(dim=1).values
    first_G1 = torch.arange(0, len(importance_H), importance_GH.shape[1])[:, None]
    return (kept_GH + first_G1).flatten()


def keep_layers(model: Any, kept: Sequence[int]) -> None:
    """Cut a model to some of its layers, in place, each with the attention that it had: transformers looks up its mask by its place."""
    config = model.config
    model.model.layers = torch.nn.ModuleList(model.model.layers[layer] for layer in kept)
    config.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[layer] for layer in kept]


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


def head_importance(model: Any, batches: Sequence[Batch]) -> list[torch.Tensor]:
    """Float (H,) a layer: mean norm of what a query head adds to the hidden state.

    Minitron (arXiv 2407.14679) takes the norm before `o_proj`, which does not see what `o_proj` makes of it: measured, it loses more.
    """
    readers, head_dim = [layer.self_attn.o_proj for layer in model.model.layers], model.model.layers[0].self_attn.head_dim
    sums = [torch.zeros(linear.in_features // head_dim) for linear in readers]

    def add(index: int, heads_BTF: torch.Tensor, _: torch.Tensor) -> None:
        parts = zip(torch.split(heads_BTF, head_dim, -1), torch.split(readers[index].weight, head_dim, 1), strict=True)
        sums[index] += torch.stack([(head_BTK @ weight_DK.T).norm(dim=-1).sum() for head_BTK, weight_DK in parts])

    tokens = _observe(model, batches, readers, add)
    return [total / tokens for total in sums]


def embedding_importance(model: Any, batches: Sequence[Batch]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Which embedding channels matter, and how much of what every norm divides by is theirs.

    Returns:
        Float (D,): mean |activation| behind all norms that read the hidden state (Minitron, arXiv 2407.14679); and of each of these norms
        float (D,): mean square before it.
    """
    norms = embedding_norms(model)
    sums = [torch.zeros(2, norm.weight.numel()) for norm in norms]

    def add(index: int, before_BTD: torch.Tensor, after_BTD: torch.Tensor) -> None:
        sums[index] += torch.stack([after_BTD.abs().sum(dim=(0, 1)), before_BTD.square().sum(dim=(0, 1))])

    tokens = _observe(model, batches, norms, add)
    importance_D = torch.stack([total[0] for total in sums]).mean(dim=0) / tokens
    return importance_D, [total[1] / tokens for total in sums]


def embedding_norms(model: Any) -> list[Any]:
    """The norms that read the hidden state: two a layer, and the final one."""
    return [norm for layer in model.model.layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)] + [model.model.norm]


def block_influence(model: Any, batches: Sequence[Batch]) -> list[float]:
    """A layer's influence: 1 - mean cosine of the hidden state before and after it, in [0, 2] (ShortGPT, arXiv 2403.03853).

    Taken at the layers themselves, since the last of a model's `hidden_states` has already gone through the final norm.
    """
    sums = [0.0] * len(model.model.layers)

    def add(index: int, before_BTD: torch.Tensor, after_BTD: torch.Tensor) -> None:
        sums[index] += torch.cosine_similarity(before_BTD, after_BTD, dim=-1).sum().item()

    tokens = _observe(model, batches, model.model.layers, add)
    return [1 - total / tokens for total in sums]


def window_influence(model: Any, batches: Sequence[Batch], length: int) -> list[float]:
    """1 - mean cosine of the hidden state before and after every run of `length` neighbouring layers, by its first layer.

    A run that hardly turns the hidden state can be left out whole (Gromov et al., arXiv 2403.17887, there as an angle).
    """
    last = len(model.model.layers) - 1
    sums, states_BTD = [0.0] * (last + 2 - length), [torch.empty(0)]

    def add(index: int, before_BTD: torch.Tensor, after_BTD: torch.Tensor) -> None:
        if index == 0:
            states_BTD[:] = [before_BTD]
        states_BTD.append(after_BTD)
        if index == last:
            for start in range(len(sums)):
                sums[start] += torch.cosine_similarity(states_BTD[start], states_BTD[start + length], dim=-1).sum().item()

    tokens = _observe(model, batches, model.model.layers, add)
    return [1 - total / tokens for total in sums]


def loss_influence(model: Any, batches: Sequence[Batch]) -> list[float]:
    """How much the mean loss on the rows rises without each layer, nats a token: one pass over the rows a layer, and one with all."""
    whole, every = mean_loss(model, batches), range(len(model.model.layers))
    return [_loss_with(model, batches, [layer for layer in every if layer != without]) - whole for without in every]


def _loss_with(model: Any, batches: Sequence[Batch], kept: Sequence[int]) -> float:
    """The mean loss of some of the layers alone; the model is left as it was."""
    config, layers = model.config, model.model.layers
    before = {name: value for name in ("num_hidden_layers", "layer_types") if (value := getattr(config, name, None)) is not None}
    keep_layers(model, kept)
    loss = mean_loss(model, batches)
    model.model.layers = layers
    config.update(before)
    return loss


@torch.inference_mode()
def mean_loss(model: Any, batches: Sequence[Batch]) -> float:
    """Mean -log p of every token but a row's first, nats: the logarithm of the perplexity."""
    total, tokens = 0.0, 0
    for batch in batches:
        next_BT = torch.tensor([[*row[1:], NO_TARGET] for row in batch])
        for logits_NV, next_N in zip(logits_by_part(model, batch), torch.split(next_BT.flatten(), MAX_BATCH_TOKENS), strict=True):
            total += torch.nn.functional.cross_entropy(logits_NV.float(), next_N, ignore_index=NO_TARGET, reduction="sum").item()
        tokens += int((next_BT != NO_TARGET).sum())
    return total / max(tokens, 1)


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
