"""Reinforcement learning with real workers: it raises the reward, and a killed run goes on where it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from tiny_model import write_manifest
from tiny_rollouts import gold_rollouts, publish_rollouts
from train_runs import finished_checkpoints, training_workers, wait_for

from supertiny.artifacts import open_artifact
from supertiny.errors import ConfigError, NotFinite
from supertiny.llm.chat import prompt_token_ids
from supertiny.records import Rollout
from supertiny.tasks.assistant.task import AssistantTask
from supertiny.train.config import RlConfig
from supertiny.train.metrics import read_metrics
from supertiny.train.pretrain import collate
from supertiny.train.prompts import render_prompts
from supertiny.train.rewards import TrlReward
from supertiny.train.rl import rl
from supertiny.train.students import open_tokenizer

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]
BASE = "package://supertiny.tasks.assistant/models/base"
SETTINGS: dict[str, Any] = {
    "steps": 10,
    "batch": 64,
    "micro_batch": 32,
    "learning_rate": 2e-4,
    "kl_coef": 0.0,
    "checkpoint_every_steps": 2,
    "log_every_steps": 4,
    "stall_seconds": 60,
}
NUM_PROMPTS = 24
SAMPLES = 8


@pytest.fixture(scope="module")
def base() -> Path:
    """The folder of the model to start from."""
    return open_artifact(BASE, "", "model").path


@pytest.fixture(scope="module")
def gold(base: Path) -> list[Rollout]:
    """Prompts with something to call; that nothing is to be called, the model knows already."""
    return [rollout for rollout in gold_rollouts(open_tokenizer(base), 200) if rollout.prompt.reference]


@pytest.fixture(scope="module")
def rollouts(gold: list[Rollout]) -> list[Rollout]:
    """What to learn from."""
    return gold[:NUM_PROMPTS]


@pytest.fixture(scope="module")
def undertrained(base: Path, gold: list[Rollout], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base after a few steps on other prompts: it has heard of the tools, and is unsure. The base itself is sure of other names."""
    from transformers import AutoModelForCausalLM

    tokenizer, folder = open_tokenizer(base), tmp_path_factory.mktemp("models") / "student"
    rows = [(prompt_token_ids(tokenizer, row.prompt.messages, ()), row.completion.token_ids or []) for row in gold[NUM_PROMPTS:]]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for step in range(32):
        ids, weights = collate([rows[(16 * step + at) % len(rows)] for at in range(16)], prompt_loss_weight=0)
        losses = torch.nn.functional.cross_entropy(model(ids[:, :-1]).logits.transpose(1, 2), ids[:, 1:], reduction="none")
        ((losses * weights).sum() / weights.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_manifest(folder)
    return folder


@pytest.mark.slow
def test_the_reward_of_an_undertrained_student_rises_and_a_killed_run_goes_on(
    undertrained: Path, rollouts: list[Rollout], checkout: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {**SETTINGS, "student": str(undertrained)}
    publish_rollouts(tmp_path, rollouts)
    toml = tmp_path / "rl.toml"
    toml.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
    command = [sys.executable, "jobs/rl.py", "--config", str(toml), "--set", f"run_root={tmp_path}"]
    driver = subprocess.Popen(command, cwd=checkout, env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address})
    wait_for(lambda: finished_checkpoints(tmp_path, "rl")[1:], driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    wait_for(lambda: not training_workers())
    (partial,) = tmp_path.glob(".rl.*.partial")
    step = max(finished_checkpoints(tmp_path, "rl"))
    before = (partial / "metrics.jsonl").read_text().splitlines()[:step]

    artifact = rl(RlConfig(run_root=str(tmp_path), **settings))
    assert (artifact.path / "metrics.jsonl").read_text().splitlines()[:step] == before  # nothing was redone
    assert [line["step"] for line in read_metrics(artifact.path / "metrics.jsonl")] == list(range(1, SETTINGS["steps"] + 1))
    assert artifact.manifest.metrics["parameters"] == open_artifact(BASE, "", "model").manifest.metrics["parameters"]
    assert (artifact.path / "tokenizer.json").read_bytes() == (undertrained / "tokenizer.json").read_bytes()
    assert mean_reward(artifact.path, rollouts) > mean_reward(undertrained, rollouts) + 0.1


def test_fewer_prompts_than_a_step_takes_are_refused(rollouts: list[Rollout], tmp_path: Path) -> None:
    publish_rollouts(tmp_path, rollouts[:3])
    with pytest.raises(ConfigError, match=r"3 prompts in .*, one step takes batch / group_size = 8"):
        rl(RlConfig(run_root=str(tmp_path), **{**SETTINGS, "student": BASE}))


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_the_run_at_once_and_names_its_prompts(
    undertrained: Path, rollouts: list[Rollout], tmp_path: Path
) -> None:
    publish_rollouts(tmp_path, rollouts)
    settings = {**SETTINGS, "student": str(undertrained), "steps": 4, "num_workers": 1, "batch": 32, "kl_coef": 1e38}  # no KL before a step
    with pytest.raises(NotFinite, match=r"not finite in a batch of the prompts \S+, \S+.*; look at these rows"):
        rl(RlConfig(run_root=str(tmp_path), **settings))


def mean_reward(folder: Path, rollouts: list[Rollout]) -> float:
    """Over several sampled completions of every prompt, by the same seed for every model."""
    from transformers import AutoModelForCausalLM

    tokenizer = open_tokenizer(folder)
    tokenizer.padding_side = "left"
    prompts = render_prompts(rollouts, tokenizer)
    reward = TrlReward("verifier", AssistantTask(), [prompt.prompt for prompt in prompts], tokenizer, max_tokens=64)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    inputs = tokenizer([prompt.text for prompt in prompts], return_tensors="pt", padding=True)
    torch.manual_seed(0)
    drawn = model.generate(**inputs, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=64, num_return_sequences=SAMPLES)
    completions = [cut(ids.tolist(), tokenizer.eos_token_id) for ids in drawn[:, inputs["input_ids"].shape[1] :]]
    names = [prompt.prompt.id for prompt in prompts for _ in range(SAMPLES)]
    scores = [reward.score(ids, name) for ids, name in zip(completions, names, strict=True)]
    return sum(scores) / len(scores)


def cut(ids: list[int], end: int) -> list[int]:
    """A completion up to its end of turn."""
    return ids[: ids.index(end) + 1] if end in ids else ids
