"""vLLM behind the `Llm` seam: one engine inside this process, stepped by one thread, hundreds of requests in flight."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supertiny.errors import NoProgress, PromptRefused
from supertiny.llm.base import GREEDY, Sampling
from supertiny.llm.chat import completion_token_ids, prompt_token_ids
from supertiny.llm.config import EngineConfig
from supertiny.llm.devices import prepare_devices
from supertiny.llm.folders import check_folders, lora_rank
from supertiny.llm.usage import spent_so_far, usage_of
from supertiny.records import Completion, Message, Tool, TopK, Usage

log = logging.getLogger(__name__)
DEFAULT_ENGINE = EngineConfig()
_ABORT_SECONDS = 10.0
"""That a cancelled call waits for the engine to say what it used: about one step of it."""


@dataclass(frozen=True)
class _Request:
    """What the stepping thread is handed; `future` gets vLLM's RequestOutput."""

    request_id: str
    token_ids: list[int]
    params: Any
    future: Future[Any]


@dataclass(frozen=True)
class _Abort:
    """`spent` gets what the request had used by then."""

    request: _Request
    spent: Future[Usage]


class VllmLlm:
    """A model folder served by vLLM's `LLMEngine` in this process.

    Building it takes about as long as importing vLLM (11 s) the first time in a process and 1-2 s after that; `close` frees
    the engine, so that models can be built in turn. One engine at a time a process. `failure` is what killed the engine, if
    anything did: then nothing more will be answered.

    Args:
        model_path: a Hugging Face folder: config.json, weights, tokenizer with a chat template.
        stat_loggers: vLLM's StatLoggerBase classes, which see its own counters; without any it keeps none, which is faster.

    Raises:
        MissingInput: no such folder, or not the adapter's; seen before vLLM is imported.
        ConfigError: the model cannot be split so, vLLM runs no such adapter, or a setting is for a GPU or for a CPU and this machine has
            the other.
        PlanTooBig: fewer devices, or on a CPU cores, than the engine has workers.
    """

    def __init__(self, model_path: str | Path, engine: EngineConfig = DEFAULT_ENGINE, stat_loggers: Sequence[Any] = ()) -> None:
        path = Path(model_path).expanduser().absolute()
        check_folders(path, engine)
        self.failure: BaseException | None = None
        self._config = engine
        self._stat_loggers = list(stat_loggers)
        self._inbox: queue.SimpleQueue[_Request | _Abort | None] = queue.SimpleQueue()
        self._waiting: dict[str, _Request] = {}
        self._progress_at = time.monotonic()
        self._next_id = 0
        self._adapter: Any = None
        built: Future[Any] = Future()
        self._thread = threading.Thread(target=self._run, args=(path, built), name=f"vllm-{path.name}", daemon=True)
        self._thread.start()
        self._tokenizer = built.result()

    @property
    def waiting(self) -> int:
        """Requests not answered yet."""
        return len(self._waiting) + self._inbox.qsize()

    async def complete(
        self, messages: Sequence[Message], *, tools: Sequence[Tool] = (), n: int = 1, sampling: Sampling = GREEDY, logprobs: int = 0
    ) -> list[Completion]:
        """`n` completions of a conversation; with `logprobs` = K > 0, each with the top K tokens at every position, at temperature 1.

        Raises:
            PromptRefused: the prompt leaves no room for `max_tokens`, `logprobs` are asked for beside a JSON schema, or vLLM refuses the
                request: it has no grammar for its schema, say.
            NoProgress: nothing came out of the engine for `no_progress_seconds`.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        if logprobs and sampling.json_schema is not None:  # vLLM takes them after it has masked what the schema forbids
            raise PromptRefused(
                "under a JSON schema the log-probabilities are not the model's own; leave logprobs out, and score the answer"
            )
        prompt_ids = prompt_token_ids(self._tokenizer, messages, tools)
        self._check_length(len(prompt_ids), sampling.max_tokens)
        params = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            stop=list(sampling.stop),
            seed=sampling.seed,
            logprobs=logprobs or None,
            flat_logprobs=True,
            detokenize=bool(sampling.stop),
            structured_outputs=StructuredOutputsParams(json=sampling.json_schema) if sampling.json_schema is not None else None,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,
        )
        answers = await self._submit(prompt_ids, _draws(params, n))
        return [self._completion(answer, logprobs) for answer in answers]

    async def score(self, messages: Sequence[Message], text: str, *, tools: Sequence[Tool] = (), logprobs: int = 1) -> Completion:
        """A given answer as this model sees it: its tokens, end of turn included, each with the top K tokens, in one prefill."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        prompt_ids = prompt_token_ids(self._tokenizer, messages, tools)
        answer_ids = completion_token_ids(self._tokenizer, text)
        self._check_length(len(prompt_ids) + len(answer_ids), 1)
        params = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            prompt_logprobs=logprobs,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,
        )
        (answer,) = await self._submit(prompt_ids + answer_ids, [params])
        places = range(len(prompt_ids), len(prompt_ids) + len(answer_ids))
        return Completion(
            text=text,
            token_ids=answer_ids,
            top_k=_top_k(answer.prompt_logprobs, places, logprobs),
            token_logprobs=[answer.prompt_logprobs.logprobs[answer.prompt_logprobs.start_indices[place]] for place in places],
            usage=usage_of(answer),
        )

    def close(self) -> None:
        """Stop the engine and free its memory; requests still waiting fail. Closing twice is harmless."""
        self._inbox.put(None)
        self._thread.join(timeout=60)
        if self._thread.is_alive():
            raise NoProgress(f"{self._thread.name} did not stop within 60 s; end the process")

    def _check_length(self, num_tokens: int, max_tokens: int) -> None:
        if num_tokens + max_tokens > self._config.max_model_len:
            limit = self._config.max_model_len
            raise PromptRefused(f"a prompt of {num_tokens} tokens and max_tokens {max_tokens} exceed the engine's max_model_len {limit}")

    def _completion(self, answer: Any, logprobs: int) -> Completion:
        (output,) = answer.outputs
        ids = list(output.token_ids)
        stopped, usage = output.finish_reason == "stop", usage_of(answer)
        if isinstance(output.stop_reason, str):  # the ids go on to the end of the stop string, and not to the end of the turn
            return Completion(text=output.text, usage=usage)
        text = self._tokenizer.decode(ids[:-1] if stopped else ids, skip_special_tokens=False)
        top_k = _top_k(output.logprobs, range(len(ids)), logprobs) if logprobs else None
        return Completion(text=text, token_ids=ids, top_k=top_k, finish_reason="stop" if stopped else "length", usage=usage)

    async def _submit(self, token_ids: list[int], params: Sequence[Any]) -> list[Any]:
        requests = [_Request(str(self._next_id + at), token_ids, each, Future()) for at, each in enumerate(params)]
        self._next_id += len(requests)
        if not self._waiting:
            self._progress_at = time.monotonic()
        for request in requests:
            self._inbox.put(request)
        if self.failure is not None:  # looked at after the put: a thread that ends sets it before it empties the inbox
            raise self.failure
        answers = asyncio.gather(*(asyncio.wrap_future(request.future) for request in requests))
        try:
            while not answers.done():
                await asyncio.wait({answers}, timeout=self._config.no_progress_seconds)
                self._check_progress(answers)
        except asyncio.CancelledError:
            answers.add_done_callback(asyncio.Future.exception)  # nobody waits for what they fail with
            raise asyncio.CancelledError(await self._abort(requests)) from None
        return answers.result()

    async def _abort(self, requests: Sequence[_Request]) -> Usage:
        """What requests that nobody waits for any more have used; the engine forgets them."""
        aborts = [_Abort(request, Future()) for request in requests]
        for abort in aborts:
            self._inbox.put(abort)
        if self.failure is None:
            await asyncio.wait({asyncio.wrap_future(abort.spent) for abort in aborts}, timeout=_ABORT_SECONDS)
        return sum((abort.spent.result() for abort in aborts if abort.spent.done()), Usage(calls=0))

    def _check_progress(self, answer: asyncio.Future[Any]) -> None:
        silent = time.monotonic() - self._progress_at
        if not answer.done() and silent > self._config.no_progress_seconds:
            self.failure = NoProgress(f"{self._thread.name}: {len(self._waiting)} requests waiting and none finished for {silent:.0f} s")
            raise self.failure

    # From here on: the stepping thread.

    def _run(self, path: Path, built: Future[Any]) -> None:
        try:
            engine = _build(path, self._config, self._stat_loggers)
        except BaseException as error:
            built.set_exception(error)
            return
        self._adapter = _adapter(self._config)
        built.set_result(engine.get_tokenizer())
        try:
            self._step_until_closed(engine)
        except BaseException as error:
            log.exception("%s died", self._thread.name)
            self.failure = error
        finally:
            self._fail_waiting()
            engine.engine_core.shutdown()
            del engine
            gc.collect()

    def _step_until_closed(self, engine: Any) -> None:
        while True:
            busy = engine.has_unfinished_requests()
            while not busy or not self._inbox.empty():
                item = self._inbox.get()
                if item is None:
                    return
                self._take(engine, item)
                busy = engine.has_unfinished_requests()
            for output in engine.step():
                if output.finished:
                    self._progress_at = time.monotonic()
                    self._waiting.pop(output.request_id).future.set_result(output)

    def _take(self, engine: Any, item: _Request | _Abort) -> None:
        if isinstance(item, _Abort):
            if self._waiting.pop(item.request.request_id, None) is None:  # answered or refused meanwhile
                item.spent.set_result(_spent(item.request))
            else:
                item.spent.set_result(spent_so_far(engine.output_processor, item.request.request_id))
                engine.abort_request([item.request.request_id])
            return
        from vllm.exceptions import VLLMClientError

        self._waiting[item.request_id] = item
        try:
            prompt = {"type": "token", "prompt_token_ids": item.token_ids}
            engine.add_request(item.request_id, prompt, item.params, lora_request=self._adapter)
        except (ValueError, VLLMClientError) as error:  # this request is wrong; the engine is not
            self._waiting.pop(item.request_id).future.set_exception(PromptRefused(f"vLLM refuses the request: {error}"))

    def _fail_waiting(self) -> None:
        error = self.failure or NoProgress(f"{self._thread.name} was closed before it answered")
        self.failure = error
        requests = list(self._waiting.values())
        while not self._inbox.empty():
            item = self._inbox.get()
            if isinstance(item, _Request):
                requests.append(item)
            elif isinstance(item, _Abort):
                item.spent.set_result(_spent(item.request))
        self._waiting.clear()
        for request in requests:
            if not request.future.done():
                request.future.set_exception(error)


def _draws(params: Any, n: int) -> list[Any]:
    """Parameters for each of `n` requests, as vLLM makes them of one that asks for `n`, which tells the cached tokens of one alone."""
    draws = [copy(params) for _ in range(n)]
    for at, draw in enumerate(draws):
        draw.seed = None if params.seed is None else params.seed + at
    return draws


def _spent(request: _Request) -> Usage:
    """What a request used that the engine has no more; nothing where it failed or was never begun."""
    answered = request.future.done() and request.future.exception() is None
    return usage_of(request.future.result()) if answered else Usage(calls=0)


def _top_k(flat: Any, positions: range, k: int) -> TopK:
    """The k likeliest tokens at `positions`: vLLM's FlatLogprobs hold, a position, the token itself and then those by rank."""
    starts = [flat.start_indices[position] + 1 for position in positions]
    return TopK(
        ids=[flat.token_ids[start : start + k] for start in starts],
        logprobs=[flat.logprobs[start : start + k] for start in starts],
    )


def _build(path: Path, config: EngineConfig, stat_loggers: list[Any]) -> Any:
    """An `LLMEngine` whose core runs in this process. Called in the thread that will step it: OpenMP's settings are a thread's."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    prepare_devices(config)
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    started = time.monotonic()
    arguments = engine_arguments(config) | {"disable_log_stats": not stat_loggers}
    engine = LLMEngine.from_engine_args(EngineArgs(model=str(path), **arguments), stat_loggers=stat_loggers)
    log.info("%s: engine ready in %.1f s", path.name, time.monotonic() - started)
    return engine


def engine_arguments(config: EngineConfig) -> dict[str, Any]:
    """vLLM's `EngineArgs` of an engine, but for the model."""
    arguments: dict[str, Any] = {
        "dtype": config.dtype,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "max_num_batched_tokens": max(config.max_num_seqs, min(config.max_num_batched_tokens, config.max_num_seqs * config.max_model_len)),
        "kv_cache_memory_bytes": int(config.kv_cache_gib * 2**30),
        "enable_prefix_caching": config.enable_prefix_caching,
        "block_size": config.block_size,
        "tensor_parallel_size": config.tensor_parallel_size,
        "pipeline_parallel_size": config.pipeline_parallel_size,
        "distributed_executor_backend": "mp" if config.num_workers > 1 else None,  # never Ray's: the actor holds all the GPUs
        "enforce_eager": config.enforce_eager,
        "max_logprobs": -1,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if config.gpu_memory_utilization is not None:
        arguments["gpu_memory_utilization"] = config.gpu_memory_utilization
    if config.adapter is not None:
        arguments |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": lora_rank(Path(config.adapter))}
    return arguments


def _adapter(config: EngineConfig) -> Any:
    """vLLM's name for the adapter that every request goes through; None where there is none."""
    if config.adapter is None:
        return None
    from vllm.lora.request import LoRARequest

    return LoRARequest(lora_name="adapter", lora_int_id=1, lora_path=config.adapter)
