"""The prompts of rollouts, rendered for drawing completions, and those of them that are kept out of training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from supertiny.errors import ConfigError
from supertiny.llm.chat import prompt_token_ids
from supertiny.records import Prompt, Record, Rollout
from supertiny.train.config import ValidationConfig


class RenderedPrompt(Record):
    """A prompt to draw completions for."""

    prompt: Prompt
    text: str
    """The conversation as the chat template renders it."""


def render_prompts(rollouts: Sequence[Rollout], tokenizer: Any) -> list[RenderedPrompt]:
    """Every prompt once, in the order given.

    Raises:
        ConfigError: the tokenizer adds tokens of its own when it encodes text, so that TRL would see other prompts than serving.
    """
    prompts = {}
    for rollout in rollouts:
        if rollout.prompt.id in prompts:
            continue
        ids = prompt_token_ids(tokenizer, rollout.prompt.messages, rollout.tools)
        text = tokenizer.decode(ids)
        if tokenizer(text)["input_ids"] != ids:
            raise ConfigError(f"prompt {rollout.prompt.id}: the tokenizer adds tokens of its own to a rendered prompt; turn that off")
        prompts[rollout.prompt.id] = RenderedPrompt(prompt=rollout.prompt, text=text)
    return list(prompts.values())


def judgeable(prompts: Iterable[RenderedPrompt]) -> list[RenderedPrompt]:
    """Those with a reference: without one a verifier cannot tell right from wrong."""
    return [each for each in prompts if each.prompt.reference is not None]


def held_out(prompt_id: str, fraction: float) -> bool:
    """Whether a prompt is among the share that is kept out of training: decided by its id, so alike in every stage."""
    number = int.from_bytes(hashlib.sha256(prompt_id.encode()).digest()[:8])
    return number < fraction * 2**64


def write_prompts(path: Path, prompts: Iterable[RenderedPrompt]) -> Path:
    """A line of JSON a prompt."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(prompt.model_dump_json() + "\n" for prompt in prompts))
    return path


def read_prompts(path: Path) -> list[RenderedPrompt]:
    """What `write_prompts` wrote."""
    with path.open() as file:  # splitlines would also cut at separators that JSON leaves as they are
        return [RenderedPrompt.model_validate_json(line) for line in file]


def split(rollouts: Sequence[Rollout], validation: ValidationConfig | None) -> tuple[list[Rollout], list[Rollout]]:
    """The rollouts to train on, and those of the prompts that are kept out.

    Raises:
        ConfigError: nothing can be validated, or nothing is left.
    """
    fraction = validation.fraction if validation else 0.0
    kept_out = [rollout for rollout in rollouts if held_out(rollout.prompt.id, fraction)]
    rest = [rollout for rollout in rollouts if not held_out(rollout.prompt.id, fraction)]
    if validation and not (rest and any(rollout.prompt.reference is not None for rollout in kept_out)):
        raise ConfigError(
            f"validation.fraction {fraction:g} keeps {len(kept_out)} of {len(rollouts)} rollouts out, {len(rest)} are left; "
            "at least one with a reference is needed to validate, and one to train"
        )
    return rest, kept_out
