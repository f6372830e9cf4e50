"""What a user brings: tools, prompts, a teacher pipeline and a verifier."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Literal, Protocol, runtime_checkable

from supertiny.config import TaskConfig
from supertiny.errors import ConfigError
from supertiny.llm.base import Llm
from supertiny.records import Completion, Message, Prompt, Tool, Verdict


class Task(Protocol):
    """One function-calling job to be taken over by a tiny model."""

    tools: list[Tool]
    """OpenAI-style tools; they travel with every prompt, and a chat template renders them or leaves them out."""

    def prompts(self, split: str) -> list[Prompt]:
        """The prompts of a split: `train` (never evaluated on) or `heldout` (never trained on), always the same and in the same order."""

    async def teach(self, prompt: Prompt, llm: Llm) -> Completion:
        """The teacher pipeline: solve one prompt with several calls of a large model, real tools and checks.

        The completion is in the student's format, with the teacher's top-k over its tokens where the engine gives them, and
        the usage of all calls together. What the pipeline cannot solve it still answers, as best it can. In a rollout it runs in a process
        beside the engine's, with many others at once: one that hangs, raises or ends that process is a rejected row.
        """

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """The deterministic judgement of one completion's text; a prompt whose `reference` is None is checked without one."""


@runtime_checkable
class Pretrainable(Protocol):
    """A task that `train.pretrain` can make tiny models for from nothing, where no pre-trained ones are to be had."""

    def pretraining_examples(self, role: Literal["teacher", "base"], seed: int) -> Iterator[tuple[list[Message], str]]:
        """An endless stream of (messages, answer), the same for a seed; never from the `heldout` split.

        The teacher's shows every step of the teacher pipeline beside the student's format (it scores answers in that one); the
        base's shows the student's format only, and less of the task. The answer is as in `Completion.text`: no end token.
        """


def load_task(config: TaskConfig) -> Task:
    """The task that a config names.

    Raises:
        ConfigError: no such module or class, or the task refuses its options.
    """
    module_name, _, class_name = config.path.partition(":")
    try:
        task_class = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"task.path {config.path}: {error}; expected package.module:Class, importable where the job runs") from error
    try:
        task: Task = task_class(**config.options)
    except TypeError as error:
        raise ConfigError(f"task.options of {config.path}: {error}") from error
    return task
