"""Starts `ray.serve.llm`'s server in the replica that imports this module, and vLLM with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray.llm._internal.common.callbacks.base import CallbackBase  # documented hooks without a public home
from ray.llm._internal.serve.core.configs.llm_config import DiskMultiplexConfig
from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from ray.serve.llm import LLMConfig
from ray.serve.llm.deployment import LLMServer

from supertiny.serving.config import ArmConfig
from supertiny.serving.engine_options import engine_arguments


class LocalFolder(CallbackBase):
    """Skips Ray's download task: models are folders here, and the task would import vLLM in one process more."""

    async def on_before_node_init(self) -> None:
        """Called by Ray before it would download."""
        self.ctx.run_init_node = False


class OneWorkerEngine(VLLMEngine):
    """vLLM with its only worker inside the engine's process: Ray asks for one more process, which imports vLLM once more."""

    def _start_async_llm_engine(self, vllm_engine_args, vllm_engine_config, placement_group):  # type: ignore[no-untyped-def]
        vllm_engine_config.parallel_config.distributed_executor_backend = "uni"
        return super()._start_async_llm_engine(vllm_engine_args, vllm_engine_config, placement_group)


async def start_server(name: str, model_path: str, config: ArmConfig, trace_endpoint: str | None) -> Any:
    """The running server of a model folder, its engine ready to answer."""
    llm_config = LLMConfig(
        model_loading_config={"model_id": name, "model_source": model_path},
        engine_kwargs={
            **engine_arguments(config),
            "enable_prompt_tokens_details": True,  # how many tokens the prefix cache answered
            **({"otlp_traces_endpoint": f"{trace_endpoint}/v1/traces"} if trace_endpoint else {}),
        },
        accelerator_config={"kind": "cpu"},  # for Ray: it starts nothing on a GPU, since the replica holds its share of one itself
        experimental_configs={"stream_batching_interval_ms": 0},  # 50 by default: each token would wait that long
        callback_config={"callback_class": f"{LocalFolder.__module__}.{LocalFolder.__qualname__}"},
    )
    server: Any = LLMServer.sync_init(llm_config, engine_cls=OneWorkerEngine)
    await server.start()
    for at, (adapter, path) in enumerate(config.adapters.items(), 1):
        folder = str(Path(path).absolute())
        await server.engine.resolve_lora(
            DiskMultiplexConfig(model_id=adapter, max_total_tokens=None, local_path=folder, lora_assigned_int_id=at)
        )
    return server
