"""The prompts of a rollout, and the hash by which an artifact knows them."""

from __future__ import annotations

import hashlib
import json

from supertiny.errors import ConfigError, CorruptArtifact
from supertiny.records import Prompt
from supertiny.rollout.config import RolloutConfig
from supertiny.tasks.base import load_task


def load_prompts(config: RolloutConfig) -> list[Prompt]:
    """The task's prompts that a rollout takes, in their order.

    Raises:
        ConfigError: there are none, or two have the same id.
    """
    prompts = load_task(config.task).prompts(config.split)[: config.limit]
    if not prompts:
        raise ConfigError(f"{config.task.path} has no prompts in split {config.split}")
    if len({prompt.id for prompt in prompts}) < len(prompts):
        raise ConfigError(f"{config.task.path}: two prompts of split {config.split} have the same id")
    return prompts


def with_hash(config: RolloutConfig) -> RolloutConfig:
    """The config with the hash of its task's prompts and tools, so that rollouts of other prompts have another key.

    Raises:
        CorruptArtifact: it asks for others.
        ConfigError: as `load_prompts`, or a prompt's messages are no JSON, or its id or slice no UTF-8.
    """
    digest = hashlib.sha256(json.dumps(load_task(config.task).tools).encode())
    for prompt in load_prompts(config):
        try:
            digest.update(json.dumps(prompt.model_dump()).encode())
            f"{prompt.id} {prompt.slice}".encode()
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{config.task.path}: prompt {prompt.id!r} of split {config.split} cannot be stored: {error}") from None
    found = digest.hexdigest()
    if config.prompts_sha256 not in (None, found):
        raise CorruptArtifact(
            f"{config.task.path}: the prompts of split {config.split} have sha256 {found}, prompts_sha256 asks for {config.prompts_sha256}"
        )
    return config.model_copy(update={"prompts_sha256": found})
