"""Settings of the compressing stages: what they take and how small the result is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from supertiny.config import PlaceConfig, PlacedConfig, check_kinds
from supertiny.formats import FORMAT_DEFAULTS, FORMAT_NAMES, Format
from supertiny.llm.config import EngineConfig

Axis = Literal["vocab", "width", "depth", "vocab+width", "vocab+depth", "depth+width", "vocab+depth+width"]
AXES: tuple[Axis, ...] = get_args(Axis)
SIZES = {"vocab": "vocab_size", "depth": "num_hidden_layers", "width": "intermediate_size"}
"""The size that cutting along an axis changes, in the words of a Hugging Face config."""
TARGETS = ("target_parameters_fraction", "target_parameters", "target_bytes", "target_seconds_per_token")

MIN_PROOF_ROWS = 8
"""Rollouts that a proof of parity takes at least: one alone has a score of tokens, which say little."""

DEPTH_DEFAULTS = {"layers": "chosen", "influence": "similarity"}
"""How layers are chosen where the config leaves it out."""


class CompressConfig(PlacedConfig):
    """What pruning and quantizing have in common: a student, and rollouts that show which of its weights matter."""

    student: str
    """Model artifact to make smaller."""
    rollouts: str = "rollouts"
    """Rollouts artifact; its prompts and completions are the calibration rows."""
    num_rows: int = Field(256, ge=1, le=65_536)
    """Calibration rows: one accepted rollout of each of so many prompts, or all there are if they are fewer."""
    max_row_tokens: int = Field(2048, ge=8, le=131_072)
    """Longer calibration rows are cut here."""


class PruneConfig(CompressConfig):
    """Remove whole layers, feed-forward channels or tokens, so that plain Hugging Face and vLLM load the result."""

    name: str = "prune"
    """Name of the pruned model."""
    student: str = "sft"
    """Model artifact to prune."""
    axis: Axis = "width"
    """`vocab`: tokens that neither the rollouts use nor the tokenizer needs; costs nothing where there are enough of them, as in a large
    model's tokenizer. `width`: feed-forward channels, the same number in every layer; any student has some. `depth`: layers; costs most.
    Joined by `+`, they share the cut evenly. A cut vocabulary has its own rollouts, `<name>-rollouts`, to heal, quantize and prove with."""
    target_parameters_fraction: float | None = Field(None, gt=0, lt=1)
    """Parameters to keep at most, of the student's; the largest kernel-friendly shape under it is taken. 0.8 where no target is set."""
    target_parameters: int | None = Field(None, ge=1)
    """The same as a number of parameters."""
    target_bytes: int | None = Field(None, ge=1)
    """The same as bytes of all weights in bfloat16, which the student's have to be in."""
    target_seconds_per_token: float | None = Field(None, gt=0)
    """The same as seconds a token at batch 1 in bfloat16, by the machine that `latency` was measured on."""
    latency: str = "latency"
    """Latency artifact (`jobs/latency.py`) of the student; read for `target_seconds_per_token` alone."""
    tolerance_fraction: float = Field(0.1, gt=0, lt=1)
    """How far below the target that shape may be, of the student's parameters, bytes or seconds; a coarser step is an error."""
    vocab_size: int | None = Field(None, ge=1)
    """Take this vocabulary, a multiple of 128 times the workers, and let the other axes meet the target. None leaves it to the solver, as
    the next two."""
    num_hidden_layers: int | None = Field(None, ge=1)
    """Take this many layers."""
    intermediate_size: int | None = Field(None, ge=1)
    """Take this feed-forward width, a multiple of 128 times the workers."""
    hidden_size: int | None = Field(None, ge=1)
    """On axis `width` and its mixes: take this embedding width, a multiple of 128, and of Qwen2 as many query heads as fill it. None leaves
    it as it is: unlike the other three it is never chosen."""
    tensor_parallel_size: int = Field(1, ge=1, le=64)
    """Engine workers that every layer of the result can be split over evenly."""
    layers: Literal["chosen", "contiguous"] | None = None
    """Depth only: remove the layers of least influence wherever they are (`chosen`, where left out), or the run of neighbours that together
    changes the hidden state least."""
    influence: Literal["similarity", "loss"] | None = None
    """Depth and `chosen` only: a layer's influence is how much it turns the hidden state (`similarity`, where left out), or how much the
    loss on the calibration rows rises without it (a pass over the rows a layer)."""

    @model_validator(mode="before")
    @classmethod
    def _consistent(cls, values: Any) -> Any:
        """Show the one target and the way to choose layers in the resolved config; refuse two targets, and settings without effect."""
        if not isinstance(values, Mapping):
            return values
        targets = [name for name in TARGETS if values.get(name) is not None]
        if len(targets) > 1:
            raise ValueError(f"{' and '.join(targets)} are both set; one target decides")
        if values.get("hidden_size") is not None and values.get("target_seconds_per_token") is not None:
            raise ValueError(
                "hidden_size and target_seconds_per_token are both set; latencies know one embedding width: set another target"
            )
        start = _depth_defaults(values) | ({} if targets else {"target_parameters_fraction": 0.8})
        return {**start, **{name: value for name, value in values.items() if value is not None or name not in start}}


def _depth_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """How layers are chosen where a pruning config leaves it out; raises ValueError where it sets what its axis does not use."""
    axes = str(values.get("axis", "width")).split("+")
    needed = {**{size: axis for axis, size in SIZES.items()}, "hidden_size": "width", **dict.fromkeys(DEPTH_DEFAULTS, "depth")}
    without_effect = [name for name, axis in needed.items() if axis not in axes and values.get(name) is not None]
    if without_effect:
        raise ValueError(f"{', '.join(without_effect)}: without effect on axis {'+'.join(axes)}")
    if values.get("layers") != "contiguous":
        return dict(DEPTH_DEFAULTS) if "depth" in axes else {}
    if values.get("influence") is not None:
        raise ValueError("influence: without effect on contiguous layers, which are found by similarity")
    return {}


class QuantizeConfig(CompressConfig):
    """Lower the bits of every linear layer but the output head; embedding, norms and biases stay bfloat16."""

    name: str = "w8a8"
    """Name of the quantized model; where left out, that of its format: awq, gptq, w8a8 or fp8."""
    student: str = "heal"
    """Model artifact to quantize."""
    format: Format = "w8a8"
    """`awq_w4a16`: 4-bit weights in groups, asymmetric, scaled by AWQ. `gptq_w4a16`: 4-bit weights in groups, symmetric, rounded by GPTQ.
    `w8a8`: 8-bit weights by output channel (GPTQ) and 8-bit activations by token, scaled as they come. `fp8_dynamic`: both as 8-bit floats,
    for GPUs only."""
    group_size: Literal[32, 64, 128] | None = None
    """4-bit formats only: input channels that share a scale (128 where left out); must divide every linear layer's input width."""
    tensor_parallel_size: int = Field(1, ge=1, le=64)
    """4-bit formats only: engine workers that the result will be split over; the groups have to divide what each has of an input width."""
    num_scales: int | None = Field(None, ge=1, le=100)
    """AWQ only, and not to nearest: candidates tried for each layer's channel scales (20 where left out; LLM Compressor's `n_grid`)."""
    smoothing_strength: float | None = Field(None, gt=0, lt=1)
    """W8A8 only: share of the activations' outliers that SmoothQuant moves into the weights before they are rounded (0.5 in its paper,
    arXiv 2211.10438). None leaves them where they are."""
    rounding: Literal["calibrated", "nearest"] = "calibrated"
    """`calibrated`: AWQ or GPTQ, by the calibration rows. `nearest`: every weight to the nearest value that the format holds, which is what
    `quantization_aware` distillation trains for."""

    def settings(self) -> dict[str, Any]:
        """As of every stage, without the workers, which change no weight."""
        return {key: value for key, value in super().settings().items() if key != "tensor_parallel_size"}

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, values: Any) -> Any:
        """Show a format's defaults in the resolved config, and refuse settings where they would do nothing."""
        if not isinstance(values, Mapping):
            return values
        check_kinds(cls, values)
        form = values.get("format", cls.model_fields["format"].default)
        others = {name: other for other, name in FORMAT_NAMES.items() if other != form}
        if form in FORMAT_NAMES and values.get("name") in others:
            ours, theirs = FORMAT_NAMES[form], others[values["name"]]
            raise ValueError(f"name {values['name']} is what a model in {theirs} is called, and the format is {form}; set name={ours}")
        defaults: dict[str, Any] = {"name": FORMAT_NAMES.get(form), **FORMAT_DEFAULTS.get(form, {})}
        if values.get("rounding") == "nearest":
            defaults.pop("num_scales", None)
            if values.get("num_scales") is not None:
                raise ValueError("num_scales: without effect where every weight is rounded to nearest; leave it out")
        without_effect = [key for key in FORMAT_DEFAULTS["awq_w4a16"] if key not in defaults and values.get(key) is not None]
        if without_effect:
            having = [name for name, settings in FORMAT_DEFAULTS.items() if without_effect[0] in settings]
            raise ValueError(f"{', '.join(without_effect)}: without effect on {form}; only {' and '.join(having)} has it")
        if values.get("tensor_parallel_size", 1) != 1 and "group_size" not in defaults:
            raise ValueError(f"tensor_parallel_size: without effect on {form}, which has no groups")
        if values.get("smoothing_strength") is not None and (form != "w8a8" or values.get("rounding") == "nearest"):
            raise ValueError("smoothing_strength: without effect; only calibrated w8a8 has it")
        return {**defaults, **{key: value for key, value in values.items() if value is not None or key not in defaults}}


class SpeedConfig(PlacedConfig):
    """What times engines, in a process of its own on the node that its place chooses; choose the machine that will serve."""

    place: PlaceConfig = PlaceConfig()
    """Where."""

    def settings(self) -> dict[str, Any]:
        """As of every stage, and its place: a speed is its machine's."""
        return {**super().settings(), "place": self.place.model_dump(mode="json")}


class LatencyConfig(SpeedConfig):
    """How long a token takes by shape: cuts of the student with random weights, in vLLM."""

    name: str = "latency"
    """Name of the latency model's artifact."""
    student: str = "sft"
    """Model artifact whose cuts are measured."""
    rounds: int = Field(3, ge=1)
    """Measurements of every cut, in turns; the median counts."""
    max_tokens: int = Field(64, ge=1)
    """Longest answer."""
    engine: EngineConfig = EngineConfig(max_num_seqs=16)
    """The engine under every cut."""


class ParityConfig(PlacedConfig):
    """Is the file that vLLM serves the model that Hugging Face loads?"""

    name: str = "parity"
    """Name of the proof's artifact."""
    model: str = "w8a8"
    """Model artifact to prove."""
    rollouts: str = "rollouts"
    """Rollouts artifact, in the model's tokens; its completions are what both score."""
    num_rows: int = Field(32, ge=MIN_PROOF_ROWS, le=4096)
    """Rollouts scored, one of each of so many prompts, but those that are too long for the engine; 8 have to be left."""
    top_k: int = Field(20, ge=10, le=1000)
    """Likeliest tokens at every position that are compared one by one; the rest as one."""
    max_kl_nats: float = Field(0.005, gt=0, le=0.015)
    """Largest mean divergence, nats a token; the demo's students, in three formats, come to 0.00001 and less. One of them in 4 bits is
    0.0175 from itself in bfloat16, and a proof that cannot tell these apart is none."""
    min_greedy_agreement: float = Field(0.98, ge=0.95, le=1)
    """Smallest share of positions where both find the same token likeliest; there is room for ties that bfloat16 breaks either way."""
    engine: EngineConfig = EngineConfig(max_num_seqs=16)
    """The engine that serves."""
    place: PlaceConfig = PlaceConfig()
    """Where that engine runs."""
