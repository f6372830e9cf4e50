"""vLLM's arguments of a served engine, and what this machine's build of it does not have."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from supertiny.errors import ConfigError
from supertiny.llm.folders import lora_rank
from supertiny.serving.config import ArmConfig, SpeculationConfig


def engine_arguments(config: ArmConfig) -> dict[str, Any]:
    """vLLM's `AsyncEngineArgs` of an arm, but for the model.

    Raises:
        ConfigError: suffix speculation without its package, or an adapter that vLLM does not run.
        MissingInput: an adapter's folder is not there.
    """
    optional = {
        "max_num_batched_tokens": config.max_num_batched_tokens,
        "block_size": config.block_size,
        "speculative_config": config.speculation and _speculation(config.speculation),
        "kv_cache_memory_bytes": config.kv_cache_gib * 2**30 if config.num_gpus else None,
        "gpu_memory_utilization": config.gpu_memory_utilization,
    }
    return {
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "enable_prefix_caching": config.prefix_caching,
        "enable_chunked_prefill": config.chunked_prefill,
        "enforce_eager": config.num_gpus == 0,  # compiling on the CPU costs more than it gives at this size
        **{name: value for name, value in optional.items() if value is not None},
        **_adapters(config.adapters),
    }


def _speculation(config: SpeculationConfig) -> dict[str, Any]:
    if config.method == "ngram":
        return {"method": "ngram", "num_speculative_tokens": config.num_tokens, "prompt_lookup_max": config.longest_match}
    if find_spec("arctic_inference") is None:
        raise ConfigError(
            'speculation.method: "suffix" needs the package arctic-inference where the engine runs, and it is not there; '
            'install it, or take "ngram"'
        )
    return {"method": "suffix", "num_speculative_tokens": config.num_tokens, "suffix_decoding_max_tree_depth": config.longest_match}


def _adapters(adapters: dict[str, str]) -> dict[str, Any]:
    if not adapters:
        return {}
    return {"enable_lora": True, "max_loras": len(adapters), "max_lora_rank": max(lora_rank(Path(path)) for path in adapters.values())}
