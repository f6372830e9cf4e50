"""Rollouts are of certain prompts: with others they are others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from supertiny.artifacts import stage_key
from supertiny.config import validate
from supertiny.errors import ConfigError, CorruptArtifact
from supertiny.records import Prompt, Tool
from supertiny.rollout.config import RolloutConfig
from supertiny.rollout.prompts import load_prompts, with_hash

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def config_of(root: Path, texts: list[str], **settings: object) -> RolloutConfig:
    """A rollout over files, whose rows' ids say nothing of their texts."""
    (root / "tools.json").write_text(json.dumps([TOOL]))
    (root / "prompts.jsonl").write_text("\n".join(json.dumps({"id": f"p{at}", "prompt": text}) for at, text in enumerate(texts)))
    options = {"root": str(root), "tools": "tools.json", "prompts": "prompts.jsonl"}
    task = {"path": "supertiny.tasks.files.task:FileTask", "options": options}
    return validate(RolloutConfig, {"task": task, "scripted": {}, **settings}, "test")


def key(config: RolloutConfig) -> str:
    return stage_key(with_hash(config), "rollouts", {})


def test_a_prompt_whose_text_was_changed_under_its_id_makes_other_rollouts(tmp_path: Path) -> None:
    before = key(config_of(tmp_path, ["light on", "light off"]))
    assert key(config_of(tmp_path, ["light on", "light off"])) == before
    assert key(config_of(tmp_path, ["light on", "lights off"])) != before
    assert key(config_of(tmp_path, ["light on", "light off", "louder"])) != before


def test_other_tools_make_other_rollouts(tmp_path: Path) -> None:
    config = config_of(tmp_path, ["light on"])
    before = key(config)
    (tmp_path / "tools.json").write_text(json.dumps([TOOL, {**TOOL, "function": {**TOOL["function"], "name": "g"}}]))
    assert key(config) != before


def test_prompts_that_a_limit_leaves_out_do_not_count(tmp_path: Path) -> None:
    config = config_of(tmp_path, ["light on", "light off", "louder"], limit=2)
    kept = [prompt.messages[-1]["content"] for prompt in load_prompts(config)]
    (left_out,) = {"light on", "light off", "louder"} - set(kept)
    before, texts = key(config), ["light on", "light off", "louder"]
    assert key(config_of(tmp_path, [text.replace(left_out, "something else") for text in texts], limit=2)) == before


def test_prompts_of_another_hash_than_the_config_asks_for_are_refused(tmp_path: Path) -> None:
    found = with_hash(config_of(tmp_path, ["light on"])).prompts_sha256
    assert with_hash(config_of(tmp_path, ["light on"], prompts_sha256=found)).prompts_sha256 == found
    with pytest.raises(CorruptArtifact, match=f"prompts_sha256 asks for {found}"):
        with_hash(config_of(tmp_path, ["light off"], prompts_sha256=found))


def test_a_split_without_prompts_is_the_configs_fault() -> None:
    task = {"path": "short_task:ShortTask", "options": {"num_prompts": 0}}
    with pytest.raises(ConfigError, match="has no prompts in split heldout"):
        with_hash(validate(RolloutConfig, {"task": task, "scripted": {}, "split": "heldout"}, "test"))


class OddTask:
    """One prompt that cannot be stored."""

    tools: list[Tool] = []  # noqa: RUF012

    def __init__(self, what: str) -> None:
        self._what = what

    def prompts(self, split: str) -> list[Prompt]:
        """The one."""
        content = b"light \xff" if self._what == "bytes" else "light on"
        name, part = (f"p{chr(0xD800) if self._what == field else ''}" for field in ("id", "slice"))
        return [Prompt(id=name, slice=part, messages=[{"role": "user", "content": content}])]


@pytest.mark.parametrize(("what", "why"), [("bytes", "bytes is not JSON"), ("id", "surrogates not allowed"), ("slice", "surrogates not")])
def test_a_prompt_that_cannot_be_stored_is_named_before_anything_runs(what: str, why: str) -> None:
    task = {"path": f"{__name__}:OddTask", "options": {"what": what}}
    with pytest.raises(ConfigError, match=rf"prompt 'p.*' of split train cannot be stored: .*{why}"):
        with_hash(validate(RolloutConfig, {"task": task, "scripted": {}}, "test"))
