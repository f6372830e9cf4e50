"""A student asked, while it is trained, what it is not trained on; and the weights that answered best."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from supertiny.artifacts import write_atomically
from supertiny.tasks.base import Task, load_task
from supertiny.train.config import ValidationConfig
from supertiny.train.plan import DistillPlan, DrawPlan
from supertiny.train.prompts import RenderedPrompt, read_prompts
from supertiny.train.replay import REPLAYED
from supertiny.train.rewards import completion_text
from supertiny.train.students import open_tokenizer, save_student

log = logging.getLogger(__name__)
EXACT_MATCH, SECONDS = "validation_exact_match", "validation_seconds"
ASKED_AT_ONCE = 64
"""Prompts that a worker answers together."""


class Validation:
    """Asks the validation prompts when it is their turn, every worker its share, and keeps the weights that did best.

    Args:
        prompts: with references.
        kept: folder for those weights, which a restarted run finds again.
    """

    def __init__(
        self,
        config: ValidationConfig,
        prompts: Sequence[RenderedPrompt],
        task: Task,
        tokenizer: Any,
        kept: Path,
        *,
        num_steps: int,
    ) -> None:
        self._config, self._prompts, self._task, self._tokenizer = config, prompts, task, tokenizer
        self._num_steps = num_steps
        self._best = Best(kept)

    def due(self, step: int) -> bool:
        """Whether to ask after a step; after step 0 is before the first."""
        return step % self._config.every_steps == 0 or step == self._num_steps

    def ask(self, model: Any, step: int) -> dict[str, float]:
        """The fraction that the verifier accepts, that of the replayed rollouts' prompts too where there are any, and the seconds taken.

        For every worker of the process group to call.
        """
        started = time.monotonic()
        own = self._prompts[dist.get_rank() :: dist.get_world_size()]
        right = [one for start in range(0, len(own), ASKED_AT_ONCE) for one in self._right(model, own[start : start + ASKED_AT_ONCE])]
        replayed = [one for one, prompt in zip(right, own, strict=True) if prompt.prompt.slice == REPLAYED]
        counts = torch.tensor([len(right), sum(right), len(replayed), sum(replayed)], device=model.device)
        dist.all_reduce(counts)
        num, num_right, num_replayed, replayed_right = counts.tolist()
        fraction = num_right / num
        if dist.get_rank() == 0:
            log.info("step %d/%d: %.1f %% of %d validation prompts right", step, self._num_steps, 100 * fraction, len(self._prompts))
            self._best.offer(model, step, fraction)
        of_replayed = {f"{EXACT_MATCH}_{REPLAYED}": replayed_right / num_replayed} if num_replayed else {}
        return {EXACT_MATCH: fraction, **of_replayed, SECONDS: round(time.monotonic() - started, 4)}

    def publish(self, output: Path) -> dict[str, float]:
        """Move the best weights to where the student belongs; worker 0 alone. Returns which step's they are and how good."""
        return self._best.publish(output)

    def _right(self, model: Any, prompts: Sequence[RenderedPrompt]) -> list[bool]:
        answers = greedy_answers(model, self._tokenizer, [each.text for each in prompts], self._config.max_completion_tokens)
        return [self._task.verify(each.prompt, answer).accepted for each, answer in zip(prompts, answers, strict=True)]


class Best:
    """The weights that did best so far, of equals the later ones; also those of a step that a resumed run makes once more."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._note = folder, folder / "best.json"
        self.step, self.fraction = -1, -1.0
        if self._note.exists():
            note = json.loads(self._note.read_text())
            self.step, self.fraction = note["step"], note["fraction"]

    def offer(self, model: Any, step: int, fraction: float) -> None:
        """Keep the weights if they are at least as good as those kept."""
        if fraction < self.fraction:
            return
        before = self._folder / f"step-{self.step}"
        save_student(model, self._folder / f"step-{step}")
        write_atomically(self._note, json.dumps({"step": step, "fraction": fraction}))
        self.step, self.fraction = step, fraction
        if before.name != f"step-{step}":
            shutil.rmtree(before, ignore_errors=True)

    def publish(self, output: Path) -> dict[str, float]:
        """Move the weights into a folder; returns their step and fraction as metrics."""
        for path in (self._folder / f"step-{self.step}").iterdir():
            shutil.move(path, output / path.name)
        return {"best_step": self.step, f"{EXACT_MATCH}_best": self.fraction}


def open_validation(plan: DistillPlan | DrawPlan) -> Validation | None:
    """What a plan wants to be validated by."""
    config, kept = plan.config, plan.checkpoints.parent / "best"
    if config.validation is None:
        return None
    prompts, task, tokenizer = read_prompts(plan.validation), load_task(config.task), open_tokenizer(plan.student)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Validation(config.validation, prompts, task, tokenizer, kept, num_steps=plan.num_steps)


def publish(model: Any, validation: Validation | None, output: Path, zero_stage: int | None) -> dict[str, float]:
    """Leave the best student, or the last where nothing was validated, in a folder; for every worker of the process group to call.

    Returns which step's it is and how good, on worker 0 and where that is known.
    """
    published: dict[str, float] = {}
    with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=zero_stage == 3):
        if dist.get_rank() == 0 and validation:
            published = validation.publish(output)
        elif dist.get_rank() == 0:
            save_student(model, output)
    dist.barrier()
    return published


@torch.no_grad()
def greedy_answers(model: Any, tokenizer: Any, texts: Sequence[str], max_tokens: int) -> list[str]:
    """The likeliest completion of each rendered prompt, up to its end of turn."""
    inputs = tokenizer(list(texts), return_tensors="pt", padding=True, padding_side="left").to(model.device)
    training, cached = model.training, model.config.use_cache
    model.eval()
    model.config.use_cache = True
    try:
        drawn = model.generate(**inputs, do_sample=False, max_new_tokens=max_tokens, pad_token_id=tokenizer.pad_token_id)
    finally:
        model.train(training)
        model.config.use_cache = cached
    completions = drawn[:, inputs["input_ids"].shape[1] :].tolist()
    end = tokenizer.eos_token_id
    return [completion_text(ids[: ids.index(end)] if end in ids else ids, tokenizer) for ids in completions]
