"""Reinforcement learning: the student's own completions, judged by the task's verifier."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from supertiny.artifacts import Artifact, make, open_artifact
from supertiny.errors import ConfigError
from supertiny.llm.chat import prompt_token_ids
from supertiny.records import Rollout
from supertiny.rollout_table import read_rollouts
from supertiny.tasks.base import load_task
from supertiny.tracking import check_trackers
from supertiny.train.checkpoints import newest_good
from supertiny.train.config import RlConfig
from supertiny.train.metrics import read_metrics
from supertiny.train.plan import RlPlan, RlPrompt
from supertiny.train.students import carry_over, model_size, open_tokenizer
from supertiny.train.workers import check_fits, checkpoints_in, connect, run_workers

log = logging.getLogger(__name__)
AVERAGED_STEPS = 5


def rl(config: RlConfig) -> Artifact:
    """The student after GRPO: a model artifact with the metrics of every step.

    Its prompts are those of the accepted rollouts, with the calls that the rollouts agreed on where the task has no reference.

    Raises:
        MissingInput: the student or the rollouts are not there.
        CorruptArtifact: either is damaged, or every checkpoint of a killed run is.
        ConfigError: a tracker is not installed, the task cannot be loaded, or there are fewer prompts than a step takes.
        PlanTooBig: the cluster has fewer CPUs than workers.
        NotFinite: the loss or the gradient became NaN or infinite.
    """
    check_trackers(config.trackers)
    student = open_artifact(config.student, config.run_root, "model")
    rollouts = open_artifact(config.rollouts, config.run_root, "rollouts")
    load_task(config.task)
    return make(config, "model", {"student": student, "rollouts": rollouts}, lambda folder: _train(config, student, rollouts, folder))


def _train(config: RlConfig, student: Artifact, rollouts: Artifact, folder: Path) -> Mapping[str, Any]:
    prompts = render_prompts(read_rollouts(rollouts.path), open_tokenizer(student.path))
    if len(prompts) < config.batch // config.group_size:
        raise ConfigError(
            f"{len(prompts)} prompts in {rollouts.path}, one step takes batch / group_size = {config.batch // config.group_size}; "
            "make more rollouts, or lower batch"
        )
    newest_good(checkpoints_in(folder))
    connect()
    check_fits(config.num_workers)
    working = folder / ".train"
    working.mkdir(exist_ok=True)
    (working / "prompts.jsonl").write_text("".join(prompt.model_dump_json() + "\n" for prompt in prompts))
    plan = RlPlan(config=config, student=student.path, prompts=working / "prompts.jsonl", checkpoints=checkpoints_in(folder), output=folder)
    log.info("%s: %d prompts, %d steps of %d completions", config.name, len(prompts), config.steps, config.batch)
    run_workers("supertiny.train.grpo:grpo_worker", plan, config, folder)
    carry_over(student.path, folder)
    shutil.rmtree(working)
    return {**model_size(folder), "prompts": len(prompts), "steps": config.steps, **_summary(read_metrics(folder / "metrics.jsonl"))}


def render_prompts(rollouts: Sequence[Rollout], tokenizer: Any) -> list[RlPrompt]:
    """Every prompt once, in the order given; those without a reference cannot be judged and are left out.

    Raises:
        ConfigError: the tokenizer adds tokens of its own when it encodes text, so that TRL would see other prompts than serving.
    """
    prompts = {}
    for rollout in rollouts:
        if rollout.prompt.reference is None or rollout.prompt.id in prompts:
            continue
        ids = prompt_token_ids(tokenizer, rollout.prompt.messages, rollout.tools)
        text = tokenizer.decode(ids)
        if tokenizer(text)["input_ids"] != ids:
            raise ConfigError(f"prompt {rollout.prompt.id}: the tokenizer adds tokens of its own to a rendered prompt; turn that off")
        prompts[rollout.prompt.id] = RlPrompt(prompt=rollout.prompt, text=text)
    return list(prompts.values())


def _summary(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over the first and the last few steps."""
    first, last = history[:AVERAGED_STEPS], history[-AVERAGED_STEPS:]
    return {
        "reward_first": sum(step["reward"] for step in first) / len(first),
        "reward_last": sum(step["reward"] for step in last) / len(last),
        "kl_last": sum(step["kl"] for step in last) / len(last),
        "completion_tokens_last": sum(step["completion_tokens"] for step in last) / len(last),
        "training_seconds": round(sum(step["seconds"] for step in history), 3),
    }
