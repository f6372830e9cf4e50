"""Models from elsewhere: a Hugging Face folder as an artifact of this run, its files linked and hashed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from supertiny.artifacts import Artifact, file_entries, make
from supertiny.errors import ConfigError, CorruptArtifact, MissingInput
from supertiny.train.adopt_config import AdoptConfig
from supertiny.train.students import model_size, open_tokenizer

TEMPLATE = "chat_template.jinja"
"""Where a tokenizer's chat template is looked for first."""
_SWITCH = "enable_thinking"


def adopt(config: AdoptConfig) -> Artifact:
    """The model artifact, whose files are links to those of `source`; a file that changes later is found when a stage opens it.

    Raises:
        MissingInput: there is no such folder, or it lacks the config, a fast tokenizer or safetensors.
        CorruptArtifact: it is not the model with `sha256`.
        ConfigError: `thinking` is set and its chat template knows no such switch.
    """
    source = Path(config.source).expanduser().absolute()
    if not source.is_dir():
        raise MissingInput(f"{config.source}: no folder at {source}; nothing is downloaded here, so fetch the model first (`hf download`)")
    template = _template(open_tokenizer(source), config.thinking)
    if not any(source.glob("*.safetensors")):
        raise MissingInput(f"{source}: no *.safetensors; convert its weights first")
    contents = {name: entry.sha256 for name, entry in file_entries(source).items()}
    sha256 = hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()
    if config.sha256 not in (None, sha256):
        raise CorruptArtifact(f"{source}: its files have sha256 {sha256}, the config asks for {config.sha256}")

    def build(folder: Path) -> dict[str, Any]:
        for name in contents:
            link = folder / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to((source / name).resolve())
        if template is not None:
            (folder / TEMPLATE).unlink(missing_ok=True)
            (folder / TEMPLATE).write_text(template)
        return dict(model_size(folder))

    return make(config.model_copy(update={"sha256": sha256}), "model", {}, build)


def _template(tokenizer: Any, thinking: bool | None) -> str | None:
    """The chat template with its switch set for good; None where it stays as it is."""
    if thinking is None:
        return None
    template, value = str(tokenizer.chat_template), str(thinking).lower()
    if _SWITCH not in template:
        raise ConfigError(f"thinking = {value} without effect: the chat template knows no {_SWITCH}; leave it out")
    return f"{{%- set {_SWITCH} = {value} -%}}\n{template}"
