"""Reinforcement learning: the student's own completions, judged by the task's verifier."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from supertiny.artifacts import Artifact, make, open_artifact
from supertiny.rollout_table import read_rollouts
from supertiny.tasks.base import load_task
from supertiny.tracking import check_trackers
from supertiny.train.config import RlConfig
from supertiny.train.draw import check_enough, run_draw
from supertiny.train.metrics import read_metrics
from supertiny.train.prompts import judgeable, render_prompts, split
from supertiny.train.stopping import end_if_told
from supertiny.train.students import model_size, open_tokenizer

log = logging.getLogger(__name__)
AVERAGED_STEPS = 5


def rl(config: RlConfig) -> Artifact:
    """The student after GRPO: a model artifact with the metrics of every step.

    Its prompts are those of the accepted rollouts, with the calls that the rollouts agreed on where the task has no reference.

    Raises:
        MissingInput: the student or the rollouts are not there.
        CorruptArtifact: either is damaged, or every checkpoint of a killed run is.
        ConfigError: a tracker is not installed, the task cannot be loaded, there are fewer prompts than a step takes, or none to validate.
        PlanTooBig: the cluster has fewer CPUs or GPUs than workers.
        NotFinite: the loss or the gradient became NaN or infinite.
        Stopped: the job got SIGTERM; the checkpoint is written or, where the last step was made, the model published.
    """
    check_trackers(config.trackers)
    student = open_artifact(config.student, config.run_root, "model")
    rollouts = open_artifact(config.rollouts, config.run_root, "rollouts")
    load_task(config.task)
    model = make(config, "model", {"student": student, "rollouts": rollouts}, lambda folder: _train(config, student, rollouts, folder))
    end_if_told()
    return model


def _train(config: RlConfig, student: Artifact, rollouts: Artifact, folder: Path) -> Mapping[str, Any]:
    tokenizer = open_tokenizer(student.path)
    prompts, validation = (
        judgeable(render_prompts(part, tokenizer)) for part in split(read_rollouts(rollouts.path, top_k=False), config.validation)
    )
    check_enough(prompts, config.batch // config.group_size, "batch / group_size", rollouts.path)
    log.info("%s: %d prompts, %d steps of %d completions", config.name, len(prompts), config.steps, config.batch)
    last = run_draw("supertiny.train.grpo:grpo_worker", config, student.path, None, prompts, validation, config.steps, folder)
    best = {name: value for name, value in last.items() if "best" in name}
    history = read_metrics(folder / "metrics.jsonl")
    return {**model_size(folder), "prompts": len(prompts), "steps": config.steps, **_summary(history), **best}


def _summary(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over the first and the last few steps."""
    first, last = history[:AVERAGED_STEPS], history[-AVERAGED_STEPS:]
    return {
        "reward_first": sum(step["reward"] for step in first) / len(first),
        "reward_last": sum(step["reward"] for step in last) / len(last),
        "kl_last": sum(step.get("kl", 0.0) for step in last) / len(last),
        "completion_tokens_last": sum(step["completion_tokens"] for step in last) / len(last),
        "training_seconds": round(sum(step["seconds"] for step in history), 3),
    }
