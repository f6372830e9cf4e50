"""An ablation as a file: variants of the chain's stages, each with its own settings over those of all, under several seeds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from supertiny.artifacts import PACKAGE
from supertiny.config import Config, StageConfig, validate
from supertiny.evaluate.config import EvaluateConfig
from supertiny.pipeline.config import PipelineConfig

INPUTS = "inputs"
"""Folder of what all runs share, made once: pretrained models, rollouts."""
SEED = "{seed}"
"""In a path of `take`: the run's seed."""


class Variant(Config):
    """One row of the table: a stage on top of an earlier variant."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    """Name of the row, and of the artifact that its stage publishes for every seed."""
    section: Literal["sft", "distill", "on_policy", "rl", "prune", "heal", "awq", "gptq", "w8a8", "evaluate"]
    """Section of the pipeline that says what the stage is; `evaluate` makes nothing and evaluates `student` as it is."""
    student: str = "base"
    """`base`, a name in `take`, or an earlier variant."""
    rollouts: str | None = None
    """Rollouts of its own, by their name beside the models: a cut of the vocabulary publishes some. None takes those of all."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """What its section says otherwise than for all variants."""


class Experiment(Config):
    """Variants x seeds of one task."""

    name: str
    """Folder of its runs."""
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    """Each is the `seed` of every stage that has one: the order of the rows, which of them are seen where `epochs` is no whole number, and
    what is drawn on-policy and in RL. Teacher, base, rollouts and the prompts of the evaluation are those of all seeds."""
    baseline: str
    """Variant that all are compared with."""
    take: dict[str, str] = Field(default_factory=dict)
    """Artifacts made elsewhere, by the name that variants know them by: absolute paths, or paths that start in the folder of a seed.
    `teacher`, `base` and `rollouts` are not made where they are taken."""
    pipeline: dict[str, Any]
    """The chain, as of `jobs/pipeline.py`: a file's name in the TOML."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """What all variants say otherwise than the chain, by its sections."""
    variants: tuple[Variant, ...] = Field(min_length=1)
    """In their order."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        known = {"base", *self.take}
        if taken := known & set(self.names):
            raise ValueError(f"{', '.join(taken)} is taken or the base, and cannot be a variant too")
        for variant in self.variants:
            if variant.student not in known:
                raise ValueError(f"{variant.name}: student {variant.student} is neither base, nor taken, nor an earlier variant")
            known.add(variant.name)
        if len(set(self.names)) < len(self.names):
            raise ValueError("two variants have one name")
        if self.baseline not in self.names:
            raise ValueError(f"baseline {self.baseline} is no variant")
        for variant in self.variants:
            self.stage(variant, self.seeds[0], Path("/"))
        return self

    @property
    def names(self) -> list[str]:
        """Of the variants."""
        return [variant.name for variant in self.variants]

    def above(self, name: str) -> str | None:
        """The variant above one in the file; None for the first."""
        at = self.names.index(name)
        return self.names[at - 1] if at else None

    def made_from(self, name: str) -> list[Variant]:
        """The variants that one is made from, the first first, and itself."""
        variant = self.variants[self.names.index(name)]
        return [*(self.made_from(variant.student) if variant.student in self.names else []), variant]

    def root(self, seed: int, folder: Path) -> Path:
        """The run of one seed."""
        return folder / self.name / f"seed-{seed}"

    def inputs(self, folder: Path) -> PipelineConfig:
        """The pipeline whose `pretrain_teacher`, `pretrain_base` and `rollout` make what is not taken."""
        return self._pipeline({"run_root": str(folder / self.name / INPUTS)})

    def stage(self, variant: Variant, seed: int, folder: Path) -> StageConfig | None:
        """A variant's stage under a seed; None where it only evaluates.

        Raises:
            ConfigError: the settings are no valid pipeline.
        """
        if variant.section == "evaluate":
            return None
        models = {"teacher": self._uri("teacher", seed), "base": self._uri("base", seed)}
        section = getattr(self._pipeline({**models, variant.section: variant.settings}), variant.section)
        fixed = {
            "name": variant.name,
            "run_root": str(self.root(seed, folder)),
            "student": self._uri(variant.student, seed),
            "rollouts": variant.rollouts or self._uri("rollouts", seed),
            "seed": seed,
        }
        stage: StageConfig = section.model_copy(update={key: value for key, value in fixed.items() if key in type(section).model_fields})
        return stage

    def evaluation(self, variant: Variant, seed: int, folder: Path) -> EvaluateConfig:
        """How a variant is evaluated."""
        settings = self._pipeline({"evaluate": variant.settings} if variant.section == "evaluate" else {}).evaluate
        model = self._uri(variant.student, seed) if variant.section == "evaluate" else variant.name
        return settings.model_copy(update={"name": f"eval-{variant.name}", "model": model, "run_root": str(self.root(seed, folder))})

    def key(self, variant: Variant, seed: int, folder: Path) -> str:
        """Hash of all that decides a run's result, so that a result of other settings is made again."""
        stages = [stage.settings() for each in self.made_from(variant.name) if (stage := self.stage(each, seed, folder))]
        text = json.dumps(
            [self.inputs(folder).rollout.settings(), stages, self.evaluation(variant, seed, folder).settings()], sort_keys=True
        )
        return hashlib.sha256(text.encode()).hexdigest()

    def _uri(self, name: str, seed: int) -> str:
        """An artifact as the run of a seed knows it."""
        if name in self.take:
            return self.take[name].replace(SEED, str(seed))
        if name not in ("teacher", "base", "rollouts"):
            return name
        given = name if name == "rollouts" else getattr(self._pipeline({}), name)
        return str(given) if given.startswith(PACKAGE) else f"../{INPUTS}/{name}"

    def _pipeline(self, extra: Mapping[str, Any]) -> PipelineConfig:
        return validate(PipelineConfig, merged(merged(self.pipeline, self.settings), extra), self.name)


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two mappings, the second laid over the first, key by key at every depth; but a table of weights is one value."""
    result = dict(below)
    for key, value in above.items():
        deeper = isinstance(value, Mapping) and isinstance(result.get(key), Mapping) and key not in ("losses", "rewards")
        result[key] = merged(result[key], value) if deeper else value
    return result
