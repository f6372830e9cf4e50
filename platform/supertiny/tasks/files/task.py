"""A task from files: OpenAI-style tools, prompts as JSONL with or without their calls, and prompts that no tool can answer.

The files, of which a line is `{"id": …, "prompt": text, "calls": [{"name": …, "arguments": {…}}]}`; a prompt without calls is
unlabelled. A hash of each id puts it in a split:

    heldout   evaluated on, with its calls as the reference
    gold      the calls that `jobs/pretrain.py` may learn from
    train     what rollouts are made of: its calls are dropped when the file is read, and no reference is known
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from supertiny.config import Config
from supertiny.errors import ConfigError, CorruptArtifact, MalformedCall, MissingInput
from supertiny.llm.base import Llm
from supertiny.records import Call, Completion, Message, Prompt, Tool, Verdict
from supertiny.tasks.calls import check_schema, grade, matches, parse, render
from supertiny.tasks.files import augment, teacher
from supertiny.tasks.files.grounding import grounded_fraction, ungrounded
from supertiny.tasks.files.rows import Row, Shares, position, read_rows

_SCHEMA_SCORE = -0.9
_WRONG_SCORE = -0.8


class FileOptions(Config):
    """Options of a task from files; a path that is not absolute is looked up in `root`."""

    tools: str
    """JSON file: a list of `{"type": "function", "function": {"name", "description", "parameters"}}`."""
    prompts: str
    """JSONL file of prompts, with or without their calls."""
    out_of_scope: tuple[str, ...] = ()
    """JSONL files of prompts whose right answer is no call."""
    functions: tuple[str, ...] = ()
    """Tools to keep, by their names, and the labelled prompts that call no other: a narrower task from the same files. None keeps all."""
    root: str | None = None
    """Folder of the files whose path is not absolute."""
    holdout_fraction: float = Field(0.1, gt=0, lt=1)
    """Share of the labelled prompts that is held out."""
    gold_fraction: float = Field(0.0, ge=0, le=1)
    """Share of the other labelled prompts whose calls pretraining may see; the rest is for rollouts."""
    base_fraction: float = Field(0.5, gt=0, le=1)
    """Share of the gold prompts that a student's base is pretrained on."""
    salt: str = ""
    """Another salt gives another split."""
    grounded: bool = True
    """Whether every text value must occur word for word in its prompt."""
    temperature: float = Field(0.0, ge=0, le=10)
    """Of the teacher pipeline's first drafts; 0 is greedy, and above it the rollouts of one prompt differ."""
    votes: int = Field(1, ge=1, le=64)
    """First drafts of the teacher pipeline; the answer that most sound ones give is kept."""
    redrafts: int = Field(4, ge=0, le=64)
    """Further drafts where no first one is sound."""
    max_tokens: int = Field(128, ge=1)
    """Longest draft, in tokens."""
    top_k: int = Field(20, ge=1)
    """Teacher tokens kept at each position of the answer."""


class FileTask:
    """Prompts, teacher pipeline and verifier of a task from files; `options` are those of `FileOptions`."""

    def __init__(self, **options: Any) -> None:
        try:
            self._options = FileOptions.model_validate(options)
        except ValidationError as error:
            raise ConfigError(f"task.options: {'; '.join(map(_explain, error.errors()))}") from None
        self._prompts = self._path("prompts", self._options.prompts)
        self._out_of_scope = [self._path("out_of_scope", path) for path in self._options.out_of_scope]
        every = _read_tools(self._path("tools", self._options.tools))
        kept = set(self._options.functions) or {tool["function"]["name"] for tool in every}
        self.tools: list[Tool] = [tool for tool in every if tool["function"]["name"] in kept]
        self._names = {tool["function"]["name"] for tool in self.tools}
        if unknown := sorted(kept - self._names):
            raise ConfigError(f"task.options.functions: no tool {unknown[0]} in {self._options.tools}")

    def prompts(self, split: str) -> list[Prompt]:
        """The prompts of `train`, without references, or of `heldout`, with them; any number from the front is a fair sample.

        Raises:
            ConfigError: there is no such split, or it is empty.
        """
        if split not in ("train", "heldout"):
            raise ConfigError(f"no split {split}; a task from files has train and heldout")
        found = [_prompt(row) for row in self._rows if row.split == split]
        if not found:
            raise ConfigError(f"the {split} split of {self._prompts} is empty; set task.options.holdout_fraction or gold_fraction")
        return found

    async def teach(self, prompt: Prompt, llm: Llm) -> Completion:
        """The teacher pipeline's answer: see `tasks.files.teacher`."""
        options = self._options
        settings = teacher.TeacherSettings(
            temperature=options.temperature,
            votes=options.votes,
            redrafts=options.redrafts,
            max_tokens=options.max_tokens,
            top_k=options.top_k,
        )
        unlabelled = prompt.model_copy(update={"reference": None})
        return await teacher.solve(prompt, llm, self.tools, lambda text: self.verify(unlabelled, text).accepted, settings)

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """Whether the calls are the reference's; without one, whether the schema holds and the prompt has every value."""
        try:
            calls = parse(text)
        except MalformedCall as error:
            return _rejected(-1, "malformed", str(error))
        if not calls and not text.strip():
            return _rejected(-1, "malformed", "an empty answer")
        unknown = [call.name for call in calls if call.name not in self._names]
        if unknown:
            return _rejected(_SCHEMA_SCORE, "no_such_tool", f"no such tool: {', '.join(unknown)}")
        try:
            check_schema(calls, self.tools)
        except MalformedCall as error:
            return _rejected(_SCHEMA_SCORE, "schema", str(error))
        if prompt.reference is not None:
            return _compared(calls, prompt.reference)
        return self._grounded(calls, _text(prompt))

    def pretraining_examples(self, role: Literal["teacher", "base"], seed: int) -> Iterator[tuple[list[Message], str]]:
        """The gold calls in the student's format with their values swapped; the base sees `base_fraction` of them.

        Raises:
            ConfigError: there are no gold calls.
        """
        share = 1.0 if role == "teacher" else self._options.base_fraction
        gold = [row for row in self._rows if row.split == "gold" and position(f"{self._options.salt}/base/{row.id}") < share]
        if not gold:
            raise ConfigError("no gold calls to pretrain on; set task.options.gold_fraction, or start from a pre-trained model")
        for text, calls in augment.examples(gold, self.tools, seed, augment.Mix()):
            yield _messages(text), render(calls) or teacher.REFUSAL

    @cached_property
    def _rows(self) -> list[Row]:
        options = self._options
        shares = Shares(holdout_fraction=options.holdout_fraction, gold_fraction=options.gold_fraction, salt=options.salt)
        return read_rows(self._prompts, self._out_of_scope, shares, options.functions)

    def _path(self, option: str, path: str) -> Path:
        """The file that an option names."""
        full = Path(self._options.root or "", path).expanduser()
        if not full.is_absolute():
            raise ConfigError(f"task.options.{option}: {path} is relative; give an absolute path, or task.options.root as one")
        if not full.is_file():
            raise MissingInput(f"task.options.{option}: no file at {full}; set it, or task.options.root, to where the data lies")
        return full

    def _grounded(self, calls: list[Call], text: str) -> Verdict:
        """The verdict on calls that the schema takes, where no reference is known."""
        missing = ungrounded(calls, text) if self._options.grounded else []
        if not missing:
            return Verdict(accepted=True, score=1)
        score = _WRONG_SCORE + 0.5 * grounded_fraction(calls, text)
        return _rejected(score, "ungrounded", f"not in the prompt: {', '.join(missing)}")


def _compared(calls: list[Call], reference: list[Call]) -> Verdict:
    """The graded verdict on calls that the schema takes, against the right ones."""
    if matches(calls, reference):
        return Verdict(accepted=True, score=1)
    score = max(_WRONG_SCORE, 2 * grade(calls, reference) - 1)
    evidence = f"expected {render(reference) or 'no call'}, got {render(calls) or 'no call'}"
    if not reference:
        return _rejected(score, "call_out_of_scope", evidence)
    if not calls:
        return _rejected(score, "no_call", evidence)
    same_names = sorted(call.name for call in calls) == sorted(call.name for call in reference)
    return _rejected(score, "wrong_arguments" if same_names else "wrong_call", evidence)


def _read_tools(path: Path) -> list[Tool]:
    try:
        tools = json.loads(path.read_text())
        for tool in tools:
            _ = tool["function"]["name"], tool["function"]["parameters"].get("properties", {}).items()
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CorruptArtifact(f"task.options.tools: {path} is not an OpenAI-style list of tools: {error!r}") from None
    return list(tools)


def _prompt(row: Row) -> Prompt:
    slice_name = "out_of_scope" if row.out_of_scope else "in_scope"
    return Prompt(id=row.id, messages=_messages(row.text), slice=slice_name, reference=row.calls)


def _messages(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def _text(prompt: Prompt) -> str:
    """What the user said, over all turns."""
    return "\n".join(str(message.get("content") or "") for message in prompt.messages if message["role"] == "user")


def _rejected(score: float, reason: str, evidence: str) -> Verdict:
    return Verdict(accepted=False, score=score, reason=reason, evidence=evidence)


def _explain(detail: Any) -> str:
    return f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}"
