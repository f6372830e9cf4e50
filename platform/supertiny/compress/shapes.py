"""A dense decoder's sizes, read from any Hugging Face config: exact parameters and bytes, and what stock kernels want of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from supertiny.errors import ConfigError
from supertiny.formats import Format

SUPPORTED = ("llama", "qwen2", "qwen3")
"""Architectures whose parameters we count and cut, by the `model_type` of their config."""
QWEN3_HEAD_DIM = 128
"""Of a config that leaves it out, as transformers has it; the others share out the hidden size."""
INPUT_MULTIPLE = 128
"""Stock matrix kernels want input widths (K) that 128 divides, and so do quantization groups of 128."""
OUTPUT_MULTIPLE = 64
"""Output widths (N), the vocabulary's rows among them."""
VOCABULARY_MULTIPLE = INPUT_MULTIPLE
"""Rows of a cut vocabulary: outputs of the head in the forward pass, and its inputs (K) in the backward pass of healing."""


@dataclass(frozen=True)
class Linear:
    """One linear layer of a decoder layer."""

    name: str
    outputs: int
    inputs: int
    splits: str
    """Which of the two a tensor parallel worker has a share of: `outputs` or `inputs`."""


@dataclass(frozen=True)
class Shape:
    """A dense decoder's sizes, in the words of its Hugging Face config."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    tie_word_embeddings: bool
    attention_bias: bool = False
    """Llama's and Qwen3's optional biases of q, k, v and o; Qwen2 always has those of q, k and v."""

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Those of one decoder layer."""
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        width, inner = self.hidden_size, self.intermediate_size
        return (
            Linear("q_proj", queries, width, "outputs"),
            Linear("k_proj", keys, width, "outputs"),
            Linear("v_proj", keys, width, "outputs"),
            Linear("o_proj", width, queries, "inputs"),
            Linear("gate_proj", inner, width, "outputs"),
            Linear("up_proj", inner, width, "outputs"),
            Linear("down_proj", width, inner, "inputs"),
        )

    @property
    def num_parameters(self) -> int:
        """All trainable parameters, a tied embedding counted once."""
        weights = sum(linear.outputs * linear.inputs for linear in self.linears)
        return self._unquantized_parameters() + self.num_hidden_layers * weights

    def num_bytes(self, form: Format | None = None, group_size: int = 128) -> int:
        """Bytes of all tensors: bfloat16, or in a format, where embedding, norms and biases stay bfloat16. Without a file's header."""
        weights = sum(_linear_bytes(linear, form, group_size) for linear in self.linears)
        return 2 * self._unquantized_parameters() + self.num_hidden_layers * weights

    def embedding_parameters(self) -> int:
        """Parameters a token of the vocabulary takes."""
        return self.hidden_size * (1 if self.tie_word_embeddings else 2)

    def _unquantized_parameters(self) -> int:
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        biases = queries + 2 * keys if self.model_type == "qwen2" else self.attention_bias * (queries + 2 * keys + self.hidden_size)
        norms = 2 * self.hidden_size + (2 * self.head_dim if self.model_type == "qwen3" else 0)
        return self.vocab_size * self.embedding_parameters() + self.num_hidden_layers * (biases + norms) + self.hidden_size


def read_shape(config: Mapping[str, Any]) -> Shape:
    """The shape in a Hugging Face `config.json`.

    Raises:
        ConfigError: an architecture whose parameters we cannot count, a model that is quantized already, or a size is missing or no number.
    """
    kind = config.get("model_type")
    if kind not in SUPPORTED:
        raise ConfigError(f"cannot compress a model of model_type {kind!r}; supported: {', '.join(SUPPORTED)}")
    if "quantization_config" in config:
        raise ConfigError("the student is quantized already; compress the model that it was made from")
    if config.get("mlp_bias"):
        raise ConfigError("cannot compress a llama model with mlp_bias; supported are feed-forwards without biases")
    if kind == "llama" and not config.get("num_key_value_heads"):  # of the others transformers takes a number of its own
        config = {**config, "num_key_value_heads": config.get("num_attention_heads")}
    needed = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    missing = [name for name in needed if not (isinstance(config.get(name), int) and config[name] > 0)]
    if missing:
        raise ConfigError(f"the model's config.json has no {', '.join(missing)}; expected those of a {kind} model")
    head_dim = QWEN3_HEAD_DIM if kind == "qwen3" else config["hidden_size"] // config["num_attention_heads"]
    head_dim = config.get("head_dim") or head_dim
    if not (isinstance(head_dim, int) and head_dim > 0):
        raise ConfigError(f"the model's config.json has head_dim {head_dim!r}; expected a whole number above 0")
    return Shape(
        model_type=kind,
        **{name: config[name] for name in needed},
        head_dim=head_dim,
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        attention_bias=kind != "qwen2" and bool(config.get("attention_bias", False)),
    )


def with_hidden_size(shape: Shape, hidden_size: int, tensor_parallel_size: int = 1) -> Shape:
    """The shape with a narrower embedding and, of Qwen2, whose heads share it out in vLLM, as many query heads as fill it.

    Key-value heads and `head_dim` stay, so that every key-value head loses equally many query heads.

    Raises:
        ConfigError: kernels, heads or workers do not take that width; names the nearest that they do. Or they take none, as `check_heads`.
    """
    possible = _narrower(shape, tensor_parallel_size)
    if not possible:
        check_heads(shape, tensor_parallel_size)
    if hidden_size not in possible:
        rule = f"multiples of {INPUT_MULTIPLE} below the student's {shape.hidden_size}"
        if shape.model_type == "qwen2":
            rule += f", shared out among at most its {shape.num_attention_heads} heads of {shape.head_dim}, as many for each of its "
            rule += f"{shape.num_key_value_heads} key-value heads"
            if tensor_parallel_size > 1:
                rule += f", and among {tensor_parallel_size} workers in shares that kernels take"
        nearest = sorted(possible, key=lambda width: abs(width - hidden_size))[:2]
        raise ConfigError(f"hidden_size {hidden_size}: possible are {rule}; the nearest is {' or '.join(map(str, nearest)) or 'none'}")
    return possible[hidden_size]


def kernel_problems(shape: Shape, tensor_parallel_size: int = 1) -> list[str]:
    """What stock kernels do not like in a shape, each in a few words; empty where they take it.

    Every linear layer's share of a worker: inputs a multiple of 128, outputs of 64. Whole heads a worker; key-value heads are repeated
    where there are fewer than workers.
    """
    workers = tensor_parallel_size
    problems = share_problems(shape, workers)
    for linear in _shares(shape, workers):
        if linear.inputs % INPUT_MULTIPLE:
            problems.append(f"{linear.name}: {linear.inputs} inputs a worker are no multiple of {INPUT_MULTIPLE}")
        if linear.outputs % OUTPUT_MULTIPLE:
            problems.append(f"{linear.name}: {linear.outputs} outputs a worker are no multiple of {OUTPUT_MULTIPLE}")
    if shape.vocab_size % (OUTPUT_MULTIPLE * workers):
        problems.append(f"vocab_size {shape.vocab_size} is no multiple of {OUTPUT_MULTIPLE * workers}")
    return problems


def share_problems(shape: Shape, workers: int) -> list[str]:
    """Heads and sizes that workers cannot share evenly, which engines refuse to start with."""
    rows = -(-shape.vocab_size // OUTPUT_MULTIPLE) * OUTPUT_MULTIPLE  # engines fill the embedding up to it
    sizes = {"intermediate_size": shape.intermediate_size, "padded vocab_size": rows}
    uneven = [f"{workers} workers do not divide {name} {size}" for name, size in sizes.items() if size % workers]
    return _head_problems(shape, workers) + uneven


def check_heads(shape: Shape, tensor_parallel_size: int) -> None:
    """Check what engines insist on, and no axis changes: a whole number of heads for every worker; raises ConfigError."""
    if problems := _head_problems(shape, tensor_parallel_size):
        raise ConfigError(f"tensor_parallel_size {tensor_parallel_size}: {' and '.join(problems)}, which no axis changes")


def check_group_size(shape: Shape, group_size: int, tensor_parallel_size: int = 1) -> None:
    """Check that weights can be quantized in groups of `group_size` input channels, of which every worker has whole ones.

    Raises:
        ConfigError: some linear layer's input width is not a multiple of it, or a worker's share of the width is not.
    """
    workers = tensor_parallel_size
    shared = {"intermediate_size": shape.intermediate_size, "num_attention_heads x head_dim": shape.num_attention_heads * shape.head_dim}
    wrong = [f"hidden_size {shape.hidden_size}"] if shape.hidden_size % group_size else []
    wrong += [f"{name} {width}" for name, width in shared.items() if width % (group_size * workers)]
    if wrong:
        each = f" over {workers} workers" if workers > 1 else ""
        raise ConfigError(f"group_size {group_size} does not divide the student's {' and '.join(wrong)}{each}; take a smaller group")


def shrink_config(config: Mapping[str, Any], shape: Shape, kept_layers: Sequence[int]) -> dict[str, Any]:
    """A Hugging Face config of the new shape; what it says layer by layer is kept for the layers that stay.

    transformers checks that `layer_types` has an entry a layer, and Qwen's sliding window starts at layer `max_window_layers`.
    """
    changed: dict[str, Any] = {
        "vocab_size": shape.vocab_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "hidden_size": shape.hidden_size,
        "num_attention_heads": shape.num_attention_heads,
    }
    if shape.model_type != "qwen2" or "head_dim" in config:  # left out, it is what the hidden size gives a head
        changed["head_dim"] = shape.head_dim
    if config.get("layer_types"):
        changed["layer_types"] = [config["layer_types"][layer] for layer in kept_layers]
    if "max_window_layers" in config:
        changed["max_window_layers"] = sum(layer < config["max_window_layers"] for layer in kept_layers)
    return {**config, **changed}


def _narrower(shape: Shape, workers: int) -> dict[int, Shape]:
    """By their width the shapes with a narrower embedding whose heads workers can share, and in which kernels like nothing less."""
    known, possible = set(kernel_problems(shape, workers)), {}
    for width in range(INPUT_MULTIPLE, shape.hidden_size, INPUT_MULTIPLE):
        if heads := _query_heads(shape, width):
            narrow = replace(shape, hidden_size=width, num_attention_heads=heads)
            if not _head_problems(narrow, workers) and known.issuperset(kernel_problems(narrow, workers)):
                possible[width] = narrow
    return possible


def _query_heads(shape: Shape, hidden_size: int) -> int:
    """Query heads of the shape with a narrower embedding; 0 where none fit it."""
    if shape.model_type != "qwen2":
        return shape.num_attention_heads
    heads, rest = divmod(hidden_size, shape.head_dim)
    return 0 if rest or heads % shape.num_key_value_heads or heads > shape.num_attention_heads else heads


def _head_problems(shape: Shape, workers: int) -> list[str]:
    heads, keys, problems = shape.num_attention_heads, shape.num_key_value_heads, []
    if heads % keys:
        problems.append(f"{keys} key-value heads do not divide {heads} heads")
    if heads % workers:
        problems.append(f"{workers} workers do not divide {heads} heads")
    if keys % workers and workers % keys:
        problems.append(f"{workers} workers and {keys} key-value heads do not divide")
    return problems


def _shares(shape: Shape, workers: int) -> list[Linear]:
    """Every linear layer as one worker has it; shares that are not whole are left to the other checks."""
    shares = []
    for linear in shape.linears:
        parts = min(workers, shape.num_key_value_heads) if linear.name in ("k_proj", "v_proj") else workers
        if linear.splits == "outputs":
            shares.append(replace(linear, outputs=linear.outputs // parts))
        else:
            shares.append(replace(linear, inputs=linear.inputs // parts))
    return shares


def _linear_bytes(linear: Linear, form: Format | None, group_size: int) -> int:
    """Bytes of one linear layer's weight as compressed-tensors stores it: weights, scales, zero points, and the shape of what is packed."""
    weights = linear.outputs * linear.inputs
    if form is None:
        return 2 * weights
    if form in ("w8a8", "fp8_dynamic"):
        return weights + 2 * linear.outputs
    groups = linear.inputs // group_size
    zero_points = 4 * -(-linear.outputs // 8) * groups if form == "awq_w4a16" else 0
    return weights // 2 + 2 * linear.outputs * groups + zero_points + 16
