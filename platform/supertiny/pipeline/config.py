"""Settings of the whole chain: one section a stage, what they share written once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from supertiny.compress.config import ParityConfig, PruneConfig, QuantizeConfig
from supertiny.config import Config, JobConfig, PlacedConfig, check_kinds
from supertiny.evaluate.config import EvaluateConfig, GateConfig, PromoteConfig
from supertiny.pipeline.pareto_config import BATCHES, ParetoConfig
from supertiny.pipeline.recover_config import RecoverConfig
from supertiny.rollout.config import RolloutConfig
from supertiny.serving.config import ServeConfig
from supertiny.train.config import DistillConfig, RlConfig
from supertiny.train.pretrain_config import PretrainConfig

RUN_CONFIG = "pipeline.json"
"""File in the run's folder: the settings of its last start."""
CUT_ROLLOUTS = "prune-rollouts"
"""The rollouts once more, in the tokens of a student whose vocabulary was cut."""
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
    "recover": {"name": "recovery", "max_rounds": 2},
    "awq": {"name": "awq", "student": "heal", "format": "awq_w4a16"},
    "gptq": {"name": "gptq", "student": "heal", "format": "gptq_w4a16"},
    "w8a8": {"name": "w8a8", "student": "heal", "format": "w8a8"},
    "fp8": {"name": "fp8", "student": "heal", "format": "fp8_dynamic"},
    "aware": {"name": "recovery-aware", "max_rounds": 2},
    "evaluate": {"name": "eval", "model": "teacher", "system": "student"},
    "pareto": {"name": "pareto", "evaluations": [], "candidates": [], "candidates_are": None},
    "gate": {"name": "gate"},
    "parity": {"name": "parity"},
    "promote": {"name": "promote", "gate": "gate"},
}
"""What each section starts from: the artifact that it publishes and, where that is always the same, the one that it takes. Two rounds after
`heal`, since after three passes over its rollouts the demo learnt nothing more."""
PINNED = ("name", "gate", "system", "evaluations", "candidates", "candidates_are")
"""Keys that only the chain sets: the report and the serving look its artifacts up by these names, students are evaluated as such, and the
Pareto table has what is chosen from."""
QUANTIZED = ("awq", "gptq", "w8a8", "fp8")
"""Sections that quantize; of these the chain sets `student` and `format` too."""
GROUPED = ("awq", "gptq")
"""Those of them whose formats have groups."""
Transfer = Literal["sft", "distill", "on_policy", "rl"]
"""A stage of the curriculum, by its section."""
Candidate = Literal["heal", "awq", "gptq", "w8a8", "fp8"]
"""What may go before the gate, by its section."""


class TrafficConfig(Config):
    """What `make demo` sends to the served models."""

    requests: int = Field(300, ge=20)
    """Chat requests for `auto`, from held-out prompts; each session sends several."""
    concurrency: int = Field(4, ge=1)
    """Requests in flight."""
    port: int = Field(8000, ge=1, le=65535)
    """Port of the router on this machine."""


class PipelineConfig(JobConfig):
    """The whole chain: rollout, curriculum, prune, heal until it is enough, quantize in several ways, an evaluation after each, a gate."""

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
    """The cut to the target size, in parts for the workers of `evaluate.engine`."""
    heal: DistillConfig
    """A short distillation after the cut."""
    recover: RecoverConfig
    """Further rounds of it, `heal-1`, `heal-2`, …, while neither the cut nor the healed student is surely near the one before: as `heal`
    and `gate` (`confidence`, `min_prompts`) say, unless its own keys and `recover.heal` say otherwise. `max_rounds = 0` measures alone."""
    candidates: tuple[Candidate, ...] = Field(("awq", "w8a8"), min_length=1)
    """Sections whose models are evaluated, and the best of them gated, each once; the others are not run. `heal` is what healing came to,
    in bfloat16; all others are made of that. Of those that would pass the gate, or of all where none would, it is the most accurate, or the
    cheapest of those that are as accurate."""
    awq: QuantizeConfig
    """4-bit weights, scaled by AWQ."""
    gptq: QuantizeConfig
    """4-bit weights, rounded by GPTQ."""
    w8a8: QuantizeConfig
    """8-bit weights and activations."""
    fp8: QuantizeConfig
    """Both as 8-bit floats, on GPUs."""
    aware: RecoverConfig
    """Rounds of healing through the rounding of the best candidate, where that is a quantized one that would not pass the gate: it is
    measured as `gate` says, and the best round goes there. Settings as in `recover`; `quantize` is the candidate's own section. None where
    `heal` is on-policy or trains LoRA, and `aware.heal` does not say otherwise."""
    evaluate: EvaluateConfig
    """How every student is evaluated; `name`, `model` and `system` are set for each."""
    evaluate_teacher: EvaluateConfig
    """The same for the teacher pipeline, which may need other GPUs: what `evaluate` says, unless it says otherwise itself."""
    gate: GateConfig
    """The comparison that decides; its candidate is the best of `candidates`, or what `aware` made of it."""
    pareto: ParetoConfig
    """The table of the uncut student, the healed one and the candidates, by which one of these is chosen; a second one, `pareto-aware`, has
    what `aware` made of that. Measured in the engine of `evaluate`, with room for 32 requests at least, and on its nodes, unless it says
    so."""
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

    @property
    def healings(self) -> list[DistillConfig]:
        """The distillation after the cut, and a round of each recovery that has any."""
        return list(self._healings().values())

    def _healings(self) -> dict[str, DistillConfig]:
        """The same by their sections."""
        recoveries = {"recover": self.recover, **({"aware": self.aware} if self.quantized else {})}
        return {"heal": self.heal, **{f"{name}.heal": each.heal for name, each in recoveries.items() if each.max_rounds}}

    @property
    def quantized(self) -> list[QuantizeConfig]:
        """The stages that make the candidates but the healed one, in their order."""
        return [getattr(self, section) for section in self.candidates if section != "heal"]

    @property
    def placed(self) -> tuple[PlacedConfig, ...]:
        """The stages that are one process, each at its place."""
        return (self.prune, *self.quantized, self.pareto, self.parity)

    @property
    def pareto_aware(self) -> str:
        """Name of the second Pareto table, of what was trained through its rounding."""
        return f"{self.pareto.name}-aware"

    @field_validator("gate")
    @classmethod
    def _can_be_decided(cls, gate: GateConfig, others: ValidationInfo) -> GateConfig:
        """Of a field, so that it is said beside the recoveries' own errors, which have the gate's `min_prompts`."""
        evaluate = others.data.get("evaluate")
        if evaluate is not None and gate.min_prompts > evaluate.num_prompts:
            raise ValueError(
                f"min_prompts {gate.min_prompts} is over evaluate.num_prompts {evaluate.num_prompts}: the gate could never decide"
            )
        return gate

    @model_validator(mode="after")
    def _can_be_served(self) -> Self:
        if self.serve.num_cpus > self.num_cpus:
            raise ValueError(
                f"serving needs {self.serve.num_cpus} logical CPUs (replicas x threads of both arms), num_cpus is {self.num_cpus}"
            )
        return self

    @model_validator(mode="after")
    def _heals_in_the_tokens_that_stay(self) -> Self:
        """The tokens of the teacher, and of earlier rollouts, are not those of a student whose vocabulary was cut."""
        axis, cuts_tokens = self.prune.axis, "vocab" in self.prune.axis.split("+")
        after: dict[str, DistillConfig | QuantizeConfig] = {**self._healings(), **{stage.name: stage for stage in self.quantized}}
        wrong = [f"{name}.rollouts" for name, stage in after.items() if (stage.rollouts == CUT_ROLLOUTS) != cuts_tokens]
        if wrong:
            right, why = (CUT_ROLLOUTS, "renumbers the tokens") if cuts_tokens else (self.prune.rollouts, f"makes no {CUT_ROLLOUTS}")
            raise ValueError(f"{', '.join(wrong)}: has to be {right} where prune.axis is {axis}, which {why}")
        for name, stage in self._healings().items() if cuts_tokens else ():
            if stage.mode == "on_policy":
                raise ValueError(f"{name}.mode on_policy: the teacher cannot score the tokens that prune.axis {axis} renumbers")
            if stage.replay:
                raise ValueError(f"{name}.replay: earlier rollouts are not in the tokens that prune.axis {axis} renumbers")
        return self

    @model_validator(mode="after")
    def _recoveries_of_this_chain(self) -> Self:
        for name, recovery in (("recover", self.recover), ("aware", self.aware)):
            if recovery.evaluate != self.evaluate:
                raise ValueError(f"{name}.evaluate: a round is compared with what `evaluate` measured, so it cannot differ; leave it out")
            if recovery.quantize is not None:
                raise ValueError(f"{name}.quantize: without effect; the candidates' own sections say how")
        if self.aware.cut is not None:
            raise ValueError("aware.cut: its rounds begin with the candidate; leave it out")
        if self.aware.heal.quantization_aware is not None:
            raise ValueError("aware.heal.quantization_aware: without effect; it is trained for the candidate's own format")
        if self.quantized and self.aware.max_rounds and (self.aware.heal.mode == "on_policy" or self.aware.heal.lora):
            raise ValueError(
                "aware.heal: training through a rounding is off-policy and trains all weights, which `heal` does not here; set "
                "aware.max_rounds = 0"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, values: Any) -> Any:
        """Give every section what the top and the chain say, unless it says otherwise itself."""
        if not isinstance(values, Mapping):
            return values
        check_kinds(cls, values)
        top = {key: values[key] for key in SHARED if key in values}
        teacher = {"teacher": values["teacher"]} if "teacher" in values else {}
        inputs: dict[str, Mapping[str, Any]] = {"rollout": teacher, "serve": teacher, **cls._students(values)}
        inputs["sft"] = _merged(_without_teacher(values.get("distill")), inputs.get("sft", {}))
        inputs["parity"] = _where_evaluated(values.get("evaluate") or {})
        inputs["pareto"] = _with_room_for_batches(_where_evaluated(values.get("evaluate") or {}, "split", "max_tokens"))
        for section in ("prune", *GROUPED):
            inputs[section] = {**inputs.get(section, {}), **_split_as_evaluated(values.get("evaluate") or {})}
        serve_top = {key: value for key, value in top.items() if key != "git_revision"}
        for name, start in CHAIN.items():
            _refuse_pinned(name, start, values.get(name))
        sections = {name: _merged(top, start, inputs.get(name, {}), values.get(name) or {}) for name, start in CHAIN.items()}
        sections["evaluate_teacher"] = _merged(sections["evaluate"], values.get("evaluate_teacher") or {}, {"system": "teacher"})
        sections["recover"] = _merged(cls._recovery(sections, "heal", ("confidence", "min_prompts")), sections["recover"])
        sections["aware"] = cls._through_a_rounding(sections, values.get("aware") or {})
        for section in (*sections.values(), sections["recover"]["heal"], sections["aware"]["heal"]):
            if section.get("mode") == "on_policy":
                section["on_policy"] = _merged(teacher, section.get("on_policy") or {})
        optional = ("pretrain_teacher", "pretrain_base")
        given = {name: _merged(top, values[name]) for name in optional if values.get(name) is not None}
        return {**values, **sections, **given, "serve": _merged(serve_top, inputs["serve"], values.get("serve", {}))}

    @classmethod
    def _students(cls, values: Mapping[str, Any]) -> dict[str, dict[str, str]]:
        """What every stage of the curriculum starts from, the cut behind it, and the evaluation that healing looks back at."""
        student = values.get("base", cls.model_fields["base"].default)
        evaluated = {student: "base"}
        inputs: dict[str, dict[str, str]] = {}
        for section in values.get("curriculum", cls.model_fields["curriculum"].default):
            inputs[section] = {"student": student}
            student = evaluated[section] = section
        cut = values.get("prune")
        cut = cut if isinstance(cut, Mapping) else {}
        if "vocab" in str(cut.get("axis", "")).split("+"):  # what follows knows the new token ids alone
            inputs |= {section: {"rollouts": CUT_ROLLOUTS} for section in ("heal", *QUANTIZED)}
        uncut = evaluated.get(cut.get("student", student))
        if uncut is None and not (isinstance(recover := values.get("recover"), Mapping) and "baseline" in recover):
            raise ValueError(f"prune.student {cut['student']} is evaluated nowhere in this chain: name its evaluation in recover.baseline")
        return {**inputs, "prune": {"student": student}, "recover": {"baseline": f"eval-{uncut}", "cut": "prune"}}

    @classmethod
    def _recovery(cls, sections: Mapping[str, Any], rounds: str, judged: Sequence[str]) -> dict[str, Any]:
        """A recovery as far as other sections say it: rounds of healing, and what is judged as by the gate."""
        gate = {key: sections["gate"].get(key, GateConfig.model_fields[key].default) for key in judged}
        return {**gate, "heal": {**sections["heal"], "name": rounds, "student": "heal"}, "evaluate": sections["evaluate"]}

    @classmethod
    def _through_a_rounding(cls, sections: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """A recovery for whichever candidate's format, without rounds where `heal` cannot train them and nothing else is given."""
        start = cls._recovery(sections, "aware", ("baseline", "margin", "confidence", "min_prompts"))
        start["heal"].pop("quantization_aware", None)
        aware = _merged(start, sections["aware"])
        if aware["heal"].get("mode") == "on_policy" or aware["heal"].get("lora"):
            aware["max_rounds"] = given.get("max_rounds", 0)
        return aware

    @field_validator("curriculum", "candidates")
    @classmethod
    def _each_once(cls, named: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({section for section in named if named.count(section) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} is there twice: a section publishes one artifact")
        return named


def _without_teacher(distill: Any) -> dict[str, Any]:
    """Settings of `distill` that SFT has too."""
    others = ("name", "student", "mode", "on_policy", "losses", "min_divergence")
    return {key: value for key, value in distill.items() if key not in others} if isinstance(distill, Mapping) else {}


def _where_evaluated(evaluate: Mapping[str, Any], *more: str) -> dict[str, Any]:
    """The engine of the evaluations and their place, and more of their settings, for what else is served to be measured."""
    place = {key: evaluate[key] for key in ("num_gpus", "labels") if key in evaluate}
    return {"place": place, **{key: evaluate[key] for key in ("engine", *more) if key in evaluate}}


def _with_room_for_batches(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same, the engine taking as many requests together as the Pareto table measures."""
    engine = inputs.get("engine") or {}
    together = engine.get("max_num_seqs")
    if not isinstance(together, int):
        return inputs
    return {**inputs, "engine": {**engine, "max_num_seqs": max(together, *BATCHES)}}


def _split_as_evaluated(evaluate: Mapping[str, Any]) -> dict[str, int]:
    """Workers of the engine that evaluates, over which a cut and its groups have to be split evenly."""
    engine = evaluate.get("engine") or {}
    return {"tensor_parallel_size": engine["tensor_parallel_size"]} if "tensor_parallel_size" in engine else {}


def _refuse_pinned(section: str, start: Mapping[str, Any], given: Any) -> None:
    """Raise ValueError where a section sets what the chain sets."""
    if isinstance(given, Mapping):
        for key in (*PINNED, "student", "format") if section in QUANTIZED else PINNED:
            if key in start and given.get(key, start[key]) != start[key]:
                raise ValueError(f"{section}.{key} is {start[key]!r} in this chain and cannot be {given[key]!r}; leave it out")


def _merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings laid over one another, the later the stronger, key by key at every depth; but a table of weights is one value."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = result.get(key)
            whole = key in ("losses", "rewards") or not (isinstance(below, Mapping) and isinstance(value, Mapping))
            result[key] = value if whole else _merged(below or {}, value)
    return result
