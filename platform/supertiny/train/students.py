"""Model folders on their way in and out of training."""

from __future__ import annotations

import copy
import math
import shutil
from pathlib import Path
from typing import Any

from supertiny.errors import ConfigError, MissingInput

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


def vocabulary_size(folder: Path) -> int:
    """Rows of a model folder's embedding."""
    from transformers import AutoConfig

    size: int = AutoConfig.from_pretrained(folder).get_text_config().vocab_size
    return size


def check_same_tokenizer(teacher: Path, student: Path) -> None:
    """Refuse to compare two models' distributions over different tokens.

    Raises:
        ConfigError: a token of one has another id, or none, in the other, or the embeddings have another number of rows.
        MissingInput: one of the folders is no model folder with a fast tokenizer.
    """
    ours, theirs = (open_tokenizer(folder).get_vocab() for folder in (student, teacher))
    sizes = [vocabulary_size(folder) for folder in (student, teacher)]
    differing = [token for token in sorted({*ours, *theirs}) if ours.get(token) != theirs.get(token)]
    if not differing and sizes[0] == sizes[1]:
        return
    what = f"they give {len(differing)} tokens different ids, such as {differing[0]!r}" if differing else "the tokens are the same"
    raise ConfigError(
        f"teacher {teacher} and student {student} do not share a tokenizer: {what}; {len(theirs)} and {len(ours)} tokens, embeddings of "
        f"{sizes[1]} and {sizes[0]} rows. On-policy distillation compares their distributions token by token; across tokenizers it would "
        "take a loss over aligned pieces of text, such as universal logit distillation (trl.experimental.gold.GOLDTrainer), which is not "
        "built in. Start from a student with the teacher's tokenizer and vocabulary"
    )


def carry_over(student: Path, folder: Path) -> None:
    """Copy the tokenizer and its kin into a new model folder, so that they stay the same to the byte."""
    for name in CARRIED:
        if (student / name).exists():
            shutil.copyfile(student / name, folder / name)


def save_student(model: Any, folder: Path) -> None:
    """Write a causal language model in bfloat16 as a plain Hugging Face folder, LoRA's additions added up; the model stays as it is."""
    import torch

    from supertiny.train.lora import merged_weights

    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    with torch.device("meta"):
        saved = type(plain)(copy.deepcopy(plain.config))
    weights = {name: weight.to("cpu", torch.bfloat16) for name, weight in merged_weights(plain).items()}
    saved.load_state_dict(weights, assign=True)
    saved.tie_weights()
    saved.generation_config = plain.generation_config
    saved.config.use_cache = True
    saved.save_pretrained(folder)


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
