"""Settings of healing until it is enough."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from supertiny.compress.config import QuantizeConfig
from supertiny.config import JobConfig, StageConfig, check_kinds
from supertiny.evaluate.config import EvaluateConfig
from supertiny.train.config import DistillConfig


class RecoverConfig(StageConfig):
    """Heal a cut model round by round, until it is surely not much worse than the uncut one or the budget is spent.

    With `quantize` it is the quantized model that is measured: first as calibration alone makes it, and where that is not enough, after
    rounds of distillation through the format's rounding.
    """

    name: str = "recovery"
    """Name of the artifact that says what every round gave; the rounds' models are `<heal.name>-1`, `-2`, …"""
    baseline: str = "eval-sft"
    """Evaluation of the uncut, or unquantized, model."""
    cut: str | None = None
    """The cut model, where `heal.student` was healed already: it is measured first, and that healing's tokens count."""
    margin: float = Field(0.02, gt=0, lt=1)
    """Largest loss of exact match that is acceptable, as a fraction; the whole interval of the difference has to lie above it."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Of that two-sided interval."""
    min_prompts: int = Field(1000, ge=1)
    """Fewer paired prompts than this decide nothing."""
    max_rounds: int = Field(4, ge=0, le=100)
    """Rounds at most; 0 measures alone."""
    max_tokens: int = Field(1_000_000_000, ge=1)
    """Training tokens of all healing: no round is begun that would go beyond if it took as many as the healing before it. Without `cut`
    there was none, and the first round is made in any case."""
    heal: DistillConfig
    """One round; each starts from the one before, the first from `heal.student`, the cut model or what became of it. Each has another
    `seed`."""
    quantize: QuantizeConfig | None = None
    """How `heal.student` and every round are quantized before they are evaluated; the rounds' quantized models are `<quantize.name>-1`, …,
    rounded to nearest, as their training expects. None evaluates them as they are."""
    evaluate: EvaluateConfig
    """How the cut model and every round are evaluated: as the baseline was; `name` and `model` are set for each."""

    def settings(self) -> dict[str, Any]:
        """As of every stage, and of its sections what decides their results alone."""
        sections = {"heal": self.heal, "quantize": self.quantize, "evaluate": self.evaluate}
        return {**super().settings(), **{name: section and section.settings() for name, section in sections.items()}}

    @model_validator(mode="after")
    def _can_be_decided(self) -> Self:
        if self.min_prompts > self.evaluate.num_prompts:
            raise ValueError(
                f"min_prompts {self.min_prompts} is over evaluate.num_prompts {self.evaluate.num_prompts}: no round could pass"
            )
        return self

    @model_validator(mode="after")
    def _trained_for_what_is_measured(self) -> Self:
        """Rounds trained through another rounding than the one that they are measured in would land beside what was trained for."""
        if self.quantize is not None and self.cut is not None:
            raise ValueError("cut: leave it out where `quantize` is given, by which every round is measured quantized")
        trained = self.heal.quantization_aware
        if self.quantize is not None and trained is not None:
            wanted, given = ((each.format, each.group_size) for each in (self.quantize, trained))
            if wanted != given:
                raise ValueError(f"heal.quantization_aware has format and group_size {given}, quantize has {wanted}; leave out the former")
        return self

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, values: Any) -> Any:
        """Give both sections what the top says of run and task."""
        if not isinstance(values, Mapping):
            return values
        check_kinds(cls, values)
        top = {key: values[key] for key in JobConfig.model_fields if key in values}
        start: dict[str, dict[str, Any]] = {"heal": {"name": "heal", "student": "prune"}, "evaluate": {"model": "prune"}}
        if values.get("quantize"):
            start["quantize"] = {}
        values = {**values, **{section: {**top, **start[section], **values.get(section, {})} for section in start}}
        if "quantize" in start:
            student = values["heal"]["student"]
            if values["quantize"].get("student", student) != student:
                raise ValueError(f"quantize.student: without effect; every round quantizes what healing makes of {student}")
            aware = {name: values["quantize"].get(name) for name in ("format", "group_size") if values["quantize"].get(name) is not None}
            values["heal"] = {"quantization_aware": {"format": QuantizeConfig.model_fields["format"].default, **aware}, **values["heal"]}
            values["quantize"] = {**values["quantize"], "student": student}
        return values
