"""Model folders on their way in and out of training."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

from supertiny.errors import MissingInput

CARRIED = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *("chat_template.jinja", "generation_config.json"),
)
"""Files that a trained student has unchanged from the student that it started as."""


def open_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder.

    Raises:
        MissingInput: there is no tokenizer.json or no config.json.
    """
    from transformers import AutoTokenizer

    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).exists():
            raise MissingInput(f"{folder}: no {name}, so it is not a model folder with a fast tokenizer")
    return AutoTokenizer.from_pretrained(folder)


def carry_over(student: Path, folder: Path) -> None:
    """Copy the tokenizer and its kin into a new model folder, so that they stay the same to the byte."""
    for name in CARRIED:
        if (student / name).exists():
            shutil.copyfile(student / name, folder / name)


def model_size(folder: Path) -> dict[str, int]:
    """`parameters` (a tied embedding counts once) and `bytes` of the weights in a model folder."""
    from safetensors import safe_open

    parameters = 0
    files = sorted(folder.glob("*.safetensors"))
    for path in files:
        with safe_open(path, framework="numpy") as weights:
            for name in weights.keys():  # noqa: SIM118 - not a dict
                parameters += math.prod(weights.get_slice(name).get_shape())
    return {"parameters": parameters, "bytes": sum(path.stat().st_size for path in files)}
