"""What a model's and an adapter's folders say of the engines that can run them; seconds before vLLM would say it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from supertiny.errors import ConfigError, MissingInput
from supertiny.llm.config import EngineConfig

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The largest ranks that vLLM makes room for (`MaxLoRARanks`)."""


def read_model_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """The `config.json` of a model folder, as Hugging Face writes it; `name` where the file has another.

    Raises:
        MissingInput: there is none, or it cannot be read.
        ConfigError: it is no JSON object.
    """
    return _read(folder / name, f"{folder}: no {name} there, so it is no model folder; make the model first or set another path")


def check_folders(model: Path, engine: EngineConfig) -> None:
    """Check that the model can be split as the engine says, and that vLLM can run the engine's adapter.

    Raises:
        MissingInput: no such model or adapter folder.
        ConfigError: the model cannot be split so, or vLLM has no such adapters.
    """
    shape = read_model_config(model)
    heads, layers = shape.get("num_attention_heads"), shape.get("num_hidden_layers")
    if heads is not None and heads % engine.tensor_parallel_size:
        raise ConfigError(
            f"engine.tensor_parallel_size {engine.tensor_parallel_size} does not divide the {heads} attention heads of {model}"
        )
    shared, workers = shape.get("num_key_value_heads") or heads, engine.tensor_parallel_size
    if shared is not None and max(shared, workers) % min(shared, workers):  # each worker has some, or each has several workers
        raise ConfigError(
            f"engine.tensor_parallel_size {workers} and the {shared} key-value heads of {model}: one has to be a multiple of the other"
        )
    if layers is not None and layers < engine.pipeline_parallel_size:
        raise ConfigError(f"engine.pipeline_parallel_size {engine.pipeline_parallel_size} is over the {layers} layers of {model}")
    if engine.adapter is not None:
        lora_rank(Path(engine.adapter))


def lora_rank(adapter: Path) -> int:
    """The rank that vLLM has to make room for: the adapter's own, or the next one that it has (`max_lora_rank`).

    Raises:
        MissingInput: no such folder.
        ConfigError: it is no LoRA adapter, or one of a kind that vLLM does not run.
    """
    values = _read(
        adapter / "adapter_config.json", f"engine.adapter {adapter}: no adapter_config.json there; give the folder that PEFT wrote"
    )
    kind, rank = values.get("peft_type", "LORA"), values.get("r")
    if kind != "LORA" or not isinstance(rank, int) or rank < 1:
        raise ConfigError(f"engine.adapter {adapter}: of type {kind} and rank {rank!r}, expected LORA and a rank of 1 or more")
    unknown = [name for name in ("use_dora", "modules_to_save") if values.get(name)] + ["bias"] * (values.get("bias", "none") != "none")
    if unknown:
        raise ConfigError(f"engine.adapter {adapter}: vLLM runs no adapter with {' and '.join(unknown)}; merge it into the model instead")
    if rank > LORA_RANKS[-1]:
        raise ConfigError(f"engine.adapter {adapter}: rank {rank}, vLLM takes at most {LORA_RANKS[-1]}; merge it into the model instead")
    return next(room for room in LORA_RANKS if room >= rank)


def _read(path: Path, missing: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise MissingInput(missing) from None
    except OSError as error:
        raise MissingInput(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a JSON object")
    return values
