"""Settings of the whole chain: one section a stage, what they share written once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from supertiny.compress.config import ParityConfig, PruneConfig, QuantizeConfig
from supertiny.config import Config, JobConfig
from supertiny.evaluate.config import EvaluateConfig, GateConfig, PromoteConfig
from supertiny.rollout.config import RolloutConfig
from supertiny.serving.config import ServeConfig
from supertiny.train.config import DistillConfig, RlConfig
from supertiny.train.pretrain_config import PretrainConfig

RUN_CONFIG = "pipeline.json"
"""File in the run's folder: the settings of its last start."""
SHARED = tuple(JobConfig.model_fields)
"""Keys of the top that every section inherits."""
CHAIN: dict[str, dict[str, Any]] = {
    "rollout": {"name": "rollouts"},
    "sft": {"name": "sft", "losses": {"cross_entropy": 1.0}},
    "distill": {"name": "distill"},
    "on_policy": {"name": "on_policy", "mode": "on_policy"},
    "rl": {"name": "rl"},
    "prune": {"name": "prune"},
    "heal": {"name": "heal", "student": "prune"},
    "awq": {"name": "awq", "student": "heal", "format": "awq_w4a16"},
    "w8a8": {"name": "w8a8", "student": "heal", "format": "w8a8"},
    "evaluate": {"name": "eval", "model": "teacher"},
    "gate": {"name": "gate"},
    "parity": {"name": "parity"},
    "promote": {"name": "promote", "gate": "gate"},
}
"""What each section starts from: the artifact that it publishes and, where that is always the same, the one that it takes."""
PINNED = ("name", "gate")
"""Keys that only the chain sets: the report and the serving look its artifacts up by these names."""
Transfer = Literal["sft", "distill", "on_policy", "rl"]
"""A stage of the curriculum, by its section."""


class TrafficConfig(Config):
    """What `make demo` sends to the served models."""

    requests: int = Field(300, ge=20)
    """Chat requests for `auto`, from held-out prompts; each session sends several."""
    concurrency: int = Field(4, ge=1)
    """Requests in flight."""
    port: int = Field(8000, ge=1, le=65535)
    """Port of the router on this machine."""


class PipelineConfig(JobConfig):
    """The whole chain: rollout, the curriculum, prune, heal, quantize in two ways, an evaluation after each, and a gate."""

    teacher: str = "package://supertiny.tasks.assistant/models/teacher"
    """Model that the teacher pipeline calls; `teacher` where `pretrain_teacher` makes it."""
    base: str = "package://supertiny.tasks.assistant/models/base"
    """Model that the student starts from; `base` where `pretrain_base` makes it."""
    pretrain_teacher: PretrainConfig | None = None
    """Make the teacher first, for a task that ships none."""
    pretrain_base: PretrainConfig | None = None
    """Make the student's start first."""
    rollout: RolloutConfig
    """The teacher's rollouts."""
    curriculum: tuple[Transfer, ...] = ("sft",)
    """Sections whose stages make the student of `base`, in their order, each once; the others are not run. The first takes `base`, every
    other one what the one before it made, unless it says otherwise itself. SFT alone, since nothing did better for sure where it was
    measured (docs/log.md)."""
    sft: DistillConfig
    """Cross-entropy on the accepted completions alone; what its section leaves out is as in `distill`."""
    distill: DistillConfig
    """The teacher's distribution over its own completions."""
    on_policy: DistillConfig
    """The teacher's distribution over the student's completions; `teacher` scores, unless the section says otherwise."""
    rl: RlConfig
    """Rewards of the student's completions."""
    prune: PruneConfig
    """The cut to the target size."""
    heal: DistillConfig
    """A short distillation after the cut."""
    awq: QuantizeConfig
    """4-bit weights."""
    w8a8: QuantizeConfig
    """8-bit weights and activations."""
    evaluate: EvaluateConfig
    """How every student is evaluated; `name`, `model` and `system` are set for each."""
    evaluate_teacher: EvaluateConfig
    """The same for the teacher pipeline, which may need other GPUs: what `evaluate` says, unless it says otherwise itself."""
    gate: GateConfig
    """The comparison that decides; its candidate is the better of the quantized students."""
    parity: ParityConfig
    """The proof that vLLM serves what Hugging Face loads of the gate's candidate, without which nothing is promoted: in the engine of
    `evaluate` and on its nodes, unless it says otherwise itself; `model` and `rollouts` are set."""
    promote: PromoteConfig
    """The alias that a passing candidate gets."""
    serve: ServeConfig
    """How `make demo` and `make serve` serve the result."""
    traffic: TrafficConfig = TrafficConfig()
    """The requests that `make demo` measures with."""
    num_cpus: int = Field(8, ge=2)
    """Logical CPUs of the Ray that `make demo` and `make serve` start; more than the cores is well, for many actors only wait."""

    @property
    def transfers(self) -> list[DistillConfig | RlConfig]:
        """The stages of the curriculum, in their order."""
        return [getattr(self, section) for section in self.curriculum]

    @model_validator(mode="after")
    def _can_be_decided_and_served(self) -> Self:
        if self.gate.min_prompts > self.evaluate.num_prompts:
            raise ValueError(
                f"gate.min_prompts {self.gate.min_prompts} is over evaluate.num_prompts {self.evaluate.num_prompts}: "
                "the gate could never decide"
            )
        if self.serve.num_cpus > self.num_cpus:
            raise ValueError(
                f"serving needs {self.serve.num_cpus} logical CPUs (replicas x threads of both arms), num_cpus is {self.num_cpus}"
            )
        return self

    @model_validator(mode="after")
    def _heals_in_the_tokens_that_stay(self) -> Self:
        """The tokens of the teacher, and of earlier rollouts, are not those of a student whose vocabulary was cut."""
        if "vocab" not in self.prune.axis.split("+"):
            return self
        if self.heal.mode == "on_policy":
            raise ValueError(f"heal.mode on_policy: the teacher cannot score the tokens that prune.axis {self.prune.axis} renumbers")
        if self.heal.replay is not None:
            raise ValueError(f"heal.replay: earlier rollouts are not in the tokens that prune.axis {self.prune.axis} renumbers")
        return self

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, values: Any) -> Any:
        """Give every section what the top and the chain say, unless it says otherwise itself."""
        if not isinstance(values, Mapping):
            return values
        top = {key: values[key] for key in SHARED if key in values}
        teacher = {"teacher": values["teacher"]} if "teacher" in values else {}
        inputs: dict[str, Mapping[str, Any]] = {"rollout": teacher, "serve": teacher, **cls._students(values)}
        inputs["sft"] = _merged(_without_teacher(values.get("distill")), inputs.get("sft", {}))
        inputs["parity"] = _where_evaluated(values.get("evaluate") or {})
        serve_top = {key: value for key, value in top.items() if key != "git_revision"}
        for name, start in CHAIN.items():
            _refuse_pinned(name, start, values.get(name))
        sections = {name: _merged(top, start, inputs.get(name, {}), values.get(name) or {}) for name, start in CHAIN.items()}
        sections["evaluate_teacher"] = _merged(sections["evaluate"], {"system": "teacher"}, values.get("evaluate_teacher", {}))
        for section in sections.values():
            if section.get("mode") == "on_policy":
                section["on_policy"] = _merged(teacher, section.get("on_policy", {}))
        optional = ("pretrain_teacher", "pretrain_base")
        given = {name: _merged(top, values[name]) for name in optional if values.get(name) is not None}
        return {**values, **sections, **given, "serve": _merged(serve_top, inputs["serve"], values.get("serve", {}))}

    @classmethod
    def _students(cls, values: Mapping[str, Any]) -> dict[str, dict[str, str]]:
        """What every stage of the curriculum starts from, and the cut behind it."""
        student = values.get("base", cls.model_fields["base"].default)
        inputs: dict[str, dict[str, str]] = {}
        for section in values.get("curriculum", cls.model_fields["curriculum"].default):
            inputs[section] = {"student": student}
            student = section
        cut = values.get("prune", {})
        if isinstance(cut, Mapping) and "vocab" in str(cut.get("axis", "")).split("+"):  # what follows knows the new token ids alone
            inputs |= {section: {"rollouts": "prune-rollouts"} for section in ("heal", "awq", "w8a8")}
        return {**inputs, "prune": {"student": student}}

    @field_validator("curriculum")
    @classmethod
    def _each_once(cls, curriculum: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({section for section in curriculum if curriculum.count(section) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} is there twice: a section publishes one artifact")
        return curriculum


def _without_teacher(distill: Any) -> dict[str, Any]:
    """Settings of `distill` that SFT has too."""
    others = ("name", "student", "mode", "on_policy", "losses", "min_divergence")
    return {key: value for key, value in distill.items() if key not in others} if isinstance(distill, Mapping) else {}


def _where_evaluated(evaluate: Mapping[str, Any]) -> dict[str, Any]:
    """The engine of the evaluations and their place, for what else is served to be measured."""
    place = {key: evaluate[key] for key in ("num_gpus", "labels") if key in evaluate}
    return {"place": place} | ({"engine": evaluate["engine"]} if "engine" in evaluate else {})


def _refuse_pinned(section: str, start: Mapping[str, Any], given: Any) -> None:
    """Raise ValueError where a section sets what the chain sets."""
    if isinstance(given, Mapping):
        for key in PINNED:
            if key in start and given.get(key, start[key]) != start[key]:
                raise ValueError(f"{section}.{key} is {start[key]!r} in this chain and cannot be {given[key]!r}; leave it out")


def _merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings laid over one another, the later the stronger, key by key at every depth."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = result.get(key)
            result[key] = _merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result
