"""Where serving meets vLLM: `ray.serve.llm`'s server behind a deployment that talks in records.

vLLM is imported in the engine's replica alone (13 s a process): what builds the application and what calls the engine do without.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray import serve

from supertiny.llm.base import Sampling
from supertiny.records import Completion, Message, Tool, Usage
from supertiny.serving.config import ArmConfig
from supertiny.serving.stream import Piece, Refused

if TYPE_CHECKING:
    from ray.serve.llm.openai_api_models import ChatCompletionRequest

_HEALTH_CHECK_SECONDS = 30
"""A loaded 2-core machine answers late; 10, Serve LLM's default, would kill a healthy engine there."""


class EngineServer:
    """One replica of a model: a `ray.serve.llm` server with its vLLM engine, taking and giving plain records."""

    async def __init__(self, name: str, model_path: str, config: ArmConfig) -> None:  # type: ignore[misc]  # Serve awaits it
        from supertiny.serving.engine import start_server

        self._server = await start_server(name, model_path, config)

    async def complete(self, messages: Sequence[Message], tools: Sequence[Tool], n: int, sampling: Sampling) -> list[Completion] | Refused:
        """`n` completions of a conversation, or why there are none: too long, or nothing the chat template can render."""
        async for answer in await self._server.chat(_engine_request(messages, tools, n, sampling, stream=False)):
            return _completions(answer)
        raise RuntimeError("the engine gave no answer")

    async def stream(self, messages: Sequence[Message], tools: Sequence[Tool], sampling: Sampling) -> AsyncIterator[Piece | Refused]:
        """One completion as it is drawn, or why there is none."""
        async for lines in await self._server.chat(_engine_request(messages, tools, 1, sampling, stream=True)):
            for line in lines:
                piece = _piece(line)
                if piece is not None:
                    yield piece

    async def check_health(self) -> None:
        """Called by Serve; raises where the engine is dead, and the replica is replaced."""
        await self._server.check_health()


def engine(name: str, model_path: str, config: ArmConfig, drain_seconds: float) -> Any:
    """The deployment of one model's engine, `<name>-engine`, bound to its model."""
    deploy: Any = serve.deployment
    return deploy(
        EngineServer,
        name=f"{name}-engine",
        autoscaling_config={
            "min_replicas": config.min_replicas,
            "max_replicas": config.max_replicas,
            "target_ongoing_requests": config.target_ongoing_requests,
        },
        max_ongoing_requests=config.max_ongoing_requests,
        max_queued_requests=config.max_queued_requests,
        graceful_shutdown_timeout_s=drain_seconds,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_timeout_s=_HEALTH_CHECK_SECONDS,
        max_constructor_retry_count=2,  # each try takes most of a minute
        placement_group_bundles=[{"CPU": config.threads}],
        ray_actor_options={"num_cpus": config.threads, "runtime_env": {"env_vars": _environment(config)}},
    ).bind(name, model_path, config)


def _environment(config: ArmConfig) -> dict[str, str]:
    """The engine's environment, over the submitting job's (Serve would drop that one's)."""
    inherited: dict[str, str] = ray.get_runtime_context().runtime_env.get("env_vars", {})
    return {
        **inherited,
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # "auto" binds every engine to the same first core
        "OMP_NUM_THREADS": str(config.threads),
        "VLLM_CPU_KVCACHE_SPACE": str(config.kv_cache_gib),
        "RAYLLM_ENABLE_REQUEST_PROMPT_LOGS": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def _engine_request(
    messages: Sequence[Message], tools: Sequence[Tool], n: int, sampling: Sampling, *, stream: bool
) -> ChatCompletionRequest:
    """vLLM's request. `tool_choice` "none" shows the tools to the chat template but leaves the answer's text to us."""
    from ray.serve.llm.openai_api_models import ChatCompletionRequest

    optional = {
        "tools": list(tools) or None,
        "seed": sampling.seed,
        "stream_options": {"include_usage": True} if stream else None,
        "response_format": _response_format(sampling.json_schema),
    }
    return ChatCompletionRequest(
        messages=list(messages),
        request_id=uuid.uuid4().hex,  # Serve's own would be shared by the calls of one pipeline
        tool_choice="none",
        n=n,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens,
        stop=list(sampling.stop),
        stream=stream,
        **{key: value for key, value in optional.items() if value is not None},
    )


def _response_format(json_schema: dict[str, Any] | None) -> dict[str, Any] | None:
    return json_schema and {"type": "json_schema", "json_schema": {"name": "answer", "schema": json_schema}}


def _completions(answer: Any) -> list[Completion] | Refused:
    if error := getattr(answer, "error", None):
        return _refused(error.code, error.message)
    usage = _usage(answer.usage.model_dump())
    first = [usage] + [Usage(calls=0)] * (len(answer.choices) - 1)  # the counts are of all n together
    return [
        Completion(text=choice.message.content or "", finish_reason=_reason(choice.finish_reason), usage=spent)
        for choice, spent in zip(answer.choices, first, strict=True)
    ]


def _piece(line: Any) -> Piece | Refused | None:
    if error := getattr(line, "error", None):
        return _refused(error.code, error.message)
    data = line.removeprefix("data: ").strip()
    if data == "[DONE]":
        return None
    body = json.loads(data)
    if "error" in body:
        return _refused(body["error"]["code"], body["error"]["message"])
    if not body["choices"]:
        return Piece(usage=_usage(body["usage"]))
    choice = body["choices"][0]
    reason = choice["finish_reason"]
    return Piece(text=choice["delta"].get("content") or "", finish_reason=_reason(reason) if reason else None)


def _usage(body: dict[str, Any]) -> Usage:
    details = body.get("prompt_tokens_details") or {}
    return Usage(
        prompt_tokens=body["prompt_tokens"],
        cached_tokens=details.get("cached_tokens") or 0,
        completion_tokens=body["completion_tokens"] or 0,
    )


def _reason(reason: str) -> Any:
    return "length" if reason == "length" else "stop"


def _refused(code: int, message: str) -> Refused:
    if code >= 500:
        raise RuntimeError(f"the engine failed: {message}")
    return Refused(reason=message.partition(" (parameter=")[0])  # what follows is vLLM's own bookkeeping
