"""Where serving meets vLLM: `ray.serve.llm`'s server behind a deployment that talks in records.

vLLM is imported in the engine's replica alone (13 s a process): what builds the application and what calls the engine do without.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import serve

from supertiny.llm.base import Sampling
from supertiny.records import Completion, Message, Tool, Usage
from supertiny.serving.call import CallContext, in_time
from supertiny.serving.config import ArmConfig
from supertiny.serving.scripted import ScriptedServer
from supertiny.serving.stream import Piece, Refused

if TYPE_CHECKING:
    from ray.serve.llm.openai_api_models import ChatCompletionRequest

log = logging.getLogger(__name__)

_HEALTH_CHECK_SECONDS = 30
"""A loaded 2-core machine answers late; 10, Serve LLM's default, would kill a healthy engine there."""

_FIRST_SECONDS = 120
"""For the request that a replica begins with."""
_HELLO: list[Message] = [{"role": "user", "content": "hello"}]
_TOOL: Tool = {"type": "function", "function": {"name": "hello", "description": "", "parameters": {"type": "object", "properties": {}}}}


class EngineServer:
    """One replica of a model: a `ray.serve.llm` server with its vLLM engine, taking and giving plain records.

    A replica takes requests once it has answered one with a tool, since vLLM's first of those takes 2 s. It ends with its engine: left
    alive, it would fail fast, look idle, and draw all requests to itself.
    """

    async def __init__(self, name: str, model_path: str, config: ArmConfig, trace_endpoint: str | None) -> None:  # type: ignore[misc]  # Serve awaits it
        from supertiny.serving.engine import start_server

        self._server = await start_server(name, model_path, config, trace_endpoint)
        await self.complete(_HELLO, [_TOOL], 1, Sampling(max_tokens=1), 1, CallContext(seconds=_FIRST_SECONDS))

    async def complete(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        n: int,
        sampling: Sampling,
        logprobs: int,
        call: CallContext,
        adapter: str | None = None,
    ) -> list[Completion] | Refused:
        """`n` completions of a conversation, or why there are none: too long, or nothing the chat template can render."""
        request = _engine_request(messages, tools, n, sampling, adapter, logprobs=logprobs > 0, stream=False)
        try:
            async with asyncio.timeout(call.seconds):
                answer = await self._answer(request, call)
                if isinstance(answer, Refused) and sampling.fit_context:
                    answer = await self._answer(_as_far_as_it_goes(request), call)
                return answer
        except Exception as error:
            await self._end_with_the_engine(error)
            raise

    async def stream(
        self, messages: Sequence[Message], tools: Sequence[Tool], sampling: Sampling, call: CallContext, adapter: str | None = None
    ) -> AsyncIterator[Piece | Refused]:
        """One completion as it is drawn, or why there is none."""
        request = _engine_request(messages, tools, 1, sampling, adapter, logprobs=False, stream=True)
        try:
            async for piece in in_time(self._pieces(request, call), call.seconds):
                if isinstance(piece, Refused) and sampling.fit_context:
                    break
                yield piece
            else:
                return
            async for piece in in_time(self._pieces(_as_far_as_it_goes(request), call), call.seconds):
                yield piece
        except Exception as error:
            await self._end_with_the_engine(error)
            raise

    async def _answer(self, request: ChatCompletionRequest, call: CallContext) -> list[Completion] | Refused:
        async for answer in await self._server.chat(request, _trace(call)):
            return _completions(answer)
        raise RuntimeError("the engine gave no answer")

    async def _pieces(self, request: ChatCompletionRequest, call: CallContext) -> AsyncIterator[Piece | Refused]:
        async for lines in await self._server.chat(request, _trace(call)):
            for piece in map(_piece, lines):
                if piece is not None:
                    yield piece

    async def chat(self, request: Any, raw_request: Any = None) -> Any:
        """What `ray.serve.llm`'s own ingress asks of a server, so that it can be put over the same engine."""
        return await self._server.chat(request, raw_request)

    async def _end_with_the_engine(self, error: Exception) -> None:
        if isinstance(error, TimeoutError):
            return
        try:
            await self._server.check_health()
        except Exception:
            log.error("the engine is dead (%s); ending its replica", type(error).__name__)
            os._exit(1)

    async def check_health(self) -> None:
        """Called by Serve; raises where the engine is dead, and the replica is replaced."""
        await self._server.check_health()


def engine(name: str, model_path: Path | None, config: ArmConfig, drain_seconds: float, trace_endpoint: str | None) -> Any:
    """The deployment of one model's engine, `<name>-engine`, bound to its model; or of the scripted engine in its place."""
    deploy: Any = serve.deployment
    deployed = deploy(
        EngineServer if config.scripted is None else ScriptedServer,
        name=f"{name}-engine",
        autoscaling_config={
            "min_replicas": config.min_replicas,
            "max_replicas": config.max_replicas,
            "target_ongoing_requests": config.target_ongoing_requests,
            "upscale_delay_s": config.upscale_seconds,
            "downscale_delay_s": config.downscale_seconds,
            "look_back_period_s": max(config.upscale_seconds, 1.0),
            "metrics_interval_s": min(max(config.upscale_seconds / 2, 0.5), 10.0),  # shorter than the look-back, or Serve averages nothing
        },
        max_ongoing_requests=config.max_ongoing_requests,
        max_queued_requests=config.max_queued_requests,
        graceful_shutdown_timeout_s=drain_seconds,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_timeout_s=_HEALTH_CHECK_SECONDS,
        max_constructor_retry_count=2,  # each try takes most of a minute
        **_place(config),
    )
    return deployed.bind(config.scripted) if config.scripted is not None else deployed.bind(name, str(model_path), config, trace_endpoint)


def _place(config: ArmConfig) -> dict[str, Any]:
    """What a replica takes, all of it itself: vLLM asks for a placement group, and runs its only worker beside the replica."""
    gpus = {"GPU": config.num_gpus} if config.num_gpus else {}
    return {
        "placement_group_bundles": [{"CPU": config.threads, **gpus}],
        **({"placement_group_bundle_label_selector": [config.labels]} if config.labels else {}),
        "ray_actor_options": {
            "num_cpus": config.threads,
            "num_gpus": config.num_gpus,
            "runtime_env": {"env_vars": _environment(config)},
        },
    }


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
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",  # as the router's
    }


def _trace(call: CallContext) -> Any:
    if call.traceparent is None:
        return None
    from ray.llm._internal.serve.core.protocol import RawRequestInfo  # what `chat` takes, without a public home

    return RawRequestInfo(headers={"traceparent": call.traceparent})


def _engine_request(
    messages: Sequence[Message], tools: Sequence[Tool], n: int, sampling: Sampling, adapter: str | None, *, logprobs: bool, stream: bool
) -> ChatCompletionRequest:
    """vLLM's request. `tool_choice` "none" shows the tools to the chat template but leaves the answer's text to us."""
    from ray.serve.llm.openai_api_models import ChatCompletionRequest

    optional = {
        "model": adapter,
        "tools": list(tools) or None,
        "seed": sampling.seed,
        "stream_options": {"include_usage": True} if stream else None,
        "response_format": _response_format(sampling.json_schema),
        "logprobs": True if logprobs else None,
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


def _as_far_as_it_goes(request: ChatCompletionRequest) -> ChatCompletionRequest:
    """A refused request without `max_tokens`: where the context had no room for those, what it has room for is fewer."""
    return request.model_copy(update={"max_tokens": None, "request_id": uuid.uuid4().hex})


def _response_format(json_schema: dict[str, Any] | None) -> dict[str, Any] | None:
    return json_schema and {"type": "json_schema", "json_schema": {"name": "answer", "schema": json_schema}}


def _completions(answer: Any) -> list[Completion] | Refused:
    if error := getattr(answer, "error", None):
        return _refused(error.code, error.message)
    usage = _usage(answer.usage.model_dump())
    first = [usage] + [Usage(calls=0)] * (len(answer.choices) - 1)  # the counts are of all n together
    return [
        Completion(
            text=choice.message.content or "",
            finish_reason=_reason(choice.finish_reason),
            usage=spent,
            token_logprobs=[token.logprob for token in choice.logprobs.content or []] if choice.logprobs else None,
        )
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
