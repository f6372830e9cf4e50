"""What evaluations and gates put into their manifests, and what a report holds: the typed form of every number."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from supertiny.artifacts import Parent
from supertiny.cost import MachinePrice
from supertiny.evaluate.compare import Difference, GateVerdict, Interval
from supertiny.evaluate.config import System
from supertiny.records import Parity, Record

TRANSFERS = ("sft", "distill", "on_policy", "rl")
"""Stages that make the student, whichever of them a curriculum has."""
QUANTIZED = ("awq", "gptq", "w8a8", "fp8")
"""Stages that quantize it, whichever of them a chain has."""


class Latency(Record):
    """Seconds from a question to its whole answer, nothing else being asked."""

    p50: float
    p95: float


class Tokens(Record):
    """Totals over all prompts of the quality pass."""

    prompt: int
    cached: int
    completion: int
    model_calls: int


class Phases(Record):
    """Seconds of an evaluation by what it was doing."""

    engine: float
    """Building the engine (vLLM's import included, where this was the first) and the warm-up."""
    prompts: float
    """The quality pass: every prompt once, many in flight."""
    latency: float
    """The latency pass: one at a time."""


class EvaluationMetrics(Record):
    """One system on one set of prompts."""

    system: System
    exact_match: Interval
    """Fraction that the task's verifier accepts."""
    slices: dict[str, Interval]
    """The same by the prompts' slice."""
    call_name_accuracy: float
    """Fraction whose called names are the reference's; none, where the reference has none."""
    argument_f1: float | None
    """Mean F1 of the arguments of same-named calls, over the prompts whose reference has a call; None where no reference has one."""
    completion_tokens_mean: float
    """Generated tokens a prompt, over all model calls."""
    tokens: Tokens
    reasons: dict[str, int]
    """How many were not accepted, by the verifier's reason."""
    latency_seconds: Latency
    seconds_per_prompt: float = Field(gt=0)
    """The quality pass's wall time over its prompts: what cost is made of."""
    usd_per_thousand_correct: float | None
    """At `price`; None where nothing was right."""
    price: MachinePrice
    concurrency: int
    """Prompts in flight in the quality pass."""
    parameters: int
    bytes: int
    seconds: Phases


class Side(Record):
    """One of the two systems that a gate compares."""

    evaluation: str
    """Name of the evaluation."""
    model: Parent
    """The evaluated model and the hash of its manifest at that time."""
    exact_match: Interval


class GateMetrics(Record):
    """The comparison, candidate minus baseline, and what follows from it."""

    candidate: Side
    baseline: Side
    margin: float
    confidence: float
    difference: Difference
    verdict: GateVerdict
    slices: dict[str, Difference]
    """The same difference by slice, for a person to read; it decides nothing."""
    candidate_only: int
    """Prompts that only the candidate answered rightly."""
    baseline_only: int


class Round(Record):
    """A model that healing starts from, or what a round of it made."""

    model: str
    """What was measured: where it was quantized, the quantized one."""
    tokens: int
    """Training tokens of this round and all before."""
    exact_match: float
    difference: Difference
    """Exact match minus the baseline's, on the same prompts."""
    verdict: GateVerdict
    """`pass`: the whole interval lies above minus the margin."""


class Stage(Record):
    """One model of the chain, as evaluated."""

    name: str
    """`teacher`, `base`, then the artifacts' names: `distill`, `rl`, `prune`, `heal`, `heal-1`, `awq`, `w8a8`."""
    model_uri: str
    system: System
    parameters: int
    bytes: int
    exact_match: Interval
    slices: dict[str, Interval]
    call_name_accuracy: float
    argument_f1: float | None
    completion_tokens_mean: float
    latency_seconds: Latency
    usd_per_thousand_correct: float | None


class Curves(Record):
    """A training stage's metrics by step."""

    steps: list[int]
    metrics: dict[str, list[float | None]]
    """By name, a value a step; None where it was not measured."""


class GateResult(Record):
    """The gate, by the names of the report's stages."""

    candidate: str
    baseline: str
    margin: float
    confidence: float
    difference: Difference
    slices: dict[str, Difference]
    verdict: GateVerdict
    n: int


class Recovery(Record):
    """How healing went, round by round."""

    baseline: str
    """Evaluation that every round is compared with."""
    margin: float
    rounds: list[Round]
    ended: Literal["enough", "rounds", "tokens"]
    """The last round lies within the margin, or which budget was spent before one did."""
    model: str
    """The round's that went on."""


class Arm(Record):
    """One arm of the A/B as the client saw it."""

    requests: int = Field(ge=0)
    failed: int = Field(ge=0)
    latency_seconds: Latency | None
    """None where nothing was answered."""
    usd_per_thousand_requests: float | None
    """None where the arm got no requests."""
    correct_fraction: float | None = None
    """Answers that the verifier accepts; None where it was not asked."""


class Ab(Record):
    """Traffic through the router: the teacher pipeline against the student."""

    control: Arm
    treatment: Arm
    cost_basis: str = ""
    """What the arms' cost is made of, for the reader."""


class Choice(Record):
    """Which of several measured models to serve: the Pareto table."""

    model: str
    """Its name, the first cell of its row."""
    columns: list[str]
    rows: list[list[str]]
    why: str
    """The choice in one sentence, names between backticks."""
    measured: str
    """What the speeds are of."""


class Report(Record):
    """Everything that one run showed."""

    stages: list[Stage]
    gate: GateResult | None
    parity: Parity | None = None
    """Of the gate's candidate; None where it was not proven."""
    ab: Ab | None
    """None before anything was served."""
    choice: Choice | None = None
    """None before models were measured against each other."""
    recoveries: dict[str, Recovery] = Field(default_factory=dict)
    """Healing until it was enough, by its artifact's name."""
    seconds: dict[str, float]
    """What making each artifact took, by its name, in the order in which they were published; a recovery's rounds stand for it."""
    curves: dict[str, Curves] = Field(default_factory=dict)
    """How each training stage went, by its artifact's name, in the same order."""
    versions: dict[str, str]
    git_revision: str
    price: MachinePrice
    concurrency: int
    """Prompts in flight where throughput, and so cost, was measured."""
    date: str
    """When the report was written, UTC, ISO 8601."""
