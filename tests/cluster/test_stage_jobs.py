"""The stages' RayJobs, created in the order of the operations guide: each finds what it takes."""

from __future__ import annotations

import importlib.util
import re
import shlex
from typing import Any, get_type_hints

import pytest
from kubernetes import stage_jobs
from manifests import ROOT

from supertiny.cli import run_job
from supertiny.config import Config, load
from supertiny.evaluate.config import EvaluateConfig
from supertiny.pipeline.config import PipelineConfig

CONFIGS = ("demo", "qwen/cluster")
INPUTS = ("teacher", "student", "rollouts", "model", "baseline", "candidate", "gate", "parity")
"""Keys that name an artifact."""
every_size = pytest.mark.parametrize("configs", CONFIGS)


def orders() -> list[list[str]]:
    """The guide's loops over RayJobs: those that promote a student, and those beside."""
    text = (ROOT / "docs" / "operations.md").read_text()
    return [stages.split() for stages in re.findall(r"^for stage in (.*); do$", text, re.MULTILINE)]


def config_of(stage: str, configs: str) -> Any:
    """What a RayJob's script makes of its entrypoint's flags."""
    entrypoint = stage_jobs()[stage]["spec"]["entrypoint"]
    told = {"$SUPERTINY_CONFIGS": str(ROOT / "jobs" / "configs" / configs), "$SUPERTINY_RUN_ROOT": "/shared/runs/mine"}
    for variable, value in told.items():
        entrypoint = entrypoint.replace(variable, value)
    _, script, *flags = shlex.split(entrypoint)
    job = ROOT / script.removeprefix("/opt/supertiny/")
    spec = importlib.util.spec_from_file_location(f"job_{job.stem}", job)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    default = re.search(r'default="([^"]+)"', job.read_text())
    resolved: list[Config] = []

    def keep(config: Config) -> None:
        resolved.append(config)

    kind = get_type_hints(module.main)["config"]
    assert run_job(kind, keep, default=str(ROOT / default[1]) if default else None, argv=flags) == 0
    return resolved[0]


def takes(config: Any) -> set[str]:
    """The artifacts that a stage opens, but those that come from elsewhere."""
    stages = [config, *(getattr(config, section) for section in ("heal", "quantize") if getattr(config, section, None))]
    named = {getattr(stage, key, None) for stage in stages for key in INPUTS}
    if models := getattr(config, "models", ()):
        named |= {*models, *(f"eval-{model}" for model in models)}
    if getattr(config, "target_seconds_per_token", None):
        named.add(config.latency)
    return {name for name in named if name and "://" not in name}


def makes(config: Any) -> set[str]:
    """The artifacts that a stage publishes."""
    cut = "vocab" in str(getattr(config, "axis", ""))
    return {config.name, f"{config.name}-rollouts"} if cut else {config.name}


@every_size
def test_each_job_finds_what_it_takes(configs: str) -> None:
    to_a_promotion, beside = orders()
    assert to_a_promotion[-1] == "promote"
    assert sorted([*to_a_promotion, *beside]) == sorted(stage_jobs())
    made: set[str] = set()
    for stage in (*to_a_promotion, *beside):
        config = config_of(stage, configs)
        assert takes(config) - made == set(), stage
        assert config.run_root == "/shared/runs/mine"
        made |= makes(config)


@every_size
def test_what_is_gated_is_what_is_proven(configs: str) -> None:
    gate, parity = config_of("gate", configs), config_of("parity", configs)
    evaluations = {config.name: config for config in (config_of(stage, configs) for stage in stage_jobs() if stage.startswith("eval-"))}
    assert evaluations[gate.candidate].model == parity.model
    assert evaluations[gate.baseline].system == "teacher"
    assert config_of("promote", configs).gate == gate.name


@every_size
def test_the_teacher_is_evaluated_as_in_the_chain(configs: str) -> None:
    """On other prompts or GPUs than the students' the gate would compare nothing."""
    chain = load(PipelineConfig, ROOT / "jobs" / "configs" / configs / "pipeline.toml")
    alone: EvaluateConfig = config_of("eval-teacher", configs)
    in_chain = chain.evaluate_teacher.model_copy(update={"name": "eval-teacher", "model": chain.teacher})
    assert alone.settings() == in_chain.settings()
    assert alone.labels == in_chain.labels
