"""Stages that train on the student's own completions: what their workers need, written down, and the workers run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from supertiny.errors import ConfigError
from supertiny.train.checkpoints import newest_good
from supertiny.train.config import DistillConfig, RlConfig
from supertiny.train.plan import DrawPlan
from supertiny.train.prompts import RenderedPrompt, write_prompts
from supertiny.train.students import carry_over
from supertiny.train.workers import check_fits, checkpoints_in, run_workers


def run_draw(
    work: str,
    config: RlConfig | DistillConfig,
    student: Path,
    teacher: Path | None,
    prompts: Sequence[RenderedPrompt],
    validation: Sequence[RenderedPrompt],
    num_steps: int,
    folder: Path,
) -> dict[str, Any]:
    """What worker 0 returned; the trained student and its tokenizer are in `folder`.

    Args:
        work: as of `run_workers`; it takes a `DrawPlan`.

    Raises:
        CorruptArtifact, PlanTooBig, NotFinite and others: what `run_workers` and `check_fits` raise.
    """
    newest_good(checkpoints_in(folder))
    check_fits(config)
    working = folder / ".train"
    plan = DrawPlan(
        config=config,
        student=student,
        teacher=teacher,
        prompts=write_prompts(working / "prompts.jsonl", prompts),
        validation=write_prompts(working / "validation.jsonl", validation),
        num_steps=num_steps,
        checkpoints=checkpoints_in(folder),
        output=folder,
    )
    last = run_workers(work, plan, config, folder, compiles=draws_with_vllm(config))
    carry_over(student, folder)
    shutil.rmtree(working)
    return last


def draws_with_vllm(config: RlConfig | DistillConfig) -> bool:
    """Whether the completions come from vLLM, which needs torch's compiler in the workers."""
    draws = config if isinstance(config, RlConfig) else config.on_policy
    return draws is not None and draws.generation == "vllm"


def check_enough(prompts: Sequence[RenderedPrompt], needed: int, reason: str, rollouts: Path) -> None:
    """Refuse a step that takes more prompts than there are.

    Raises:
        ConfigError: naming both numbers.
    """
    if len(prompts) < needed:
        raise ConfigError(f"{len(prompts)} prompts in {rollouts}, one step takes {reason} = {needed}; make more rollouts, or lower batch")
