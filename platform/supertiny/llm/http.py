"""Any OpenAI-compatible endpoint behind the `Llm` seam."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from supertiny.errors import ConfigError, NoProgress, PromptRefused
from supertiny.llm.base import GREEDY, Sampling
from supertiny.llm.config import EndpointConfig
from supertiny.records import Call, Completion, Message, Tool, Usage
from supertiny.tasks.calls import render

log = logging.getLogger(__name__)
_LONGEST_PAUSE_SECONDS = 60.0
_NEVER_RIGHT = (301, 302, 303, 307, 308, 401, 402, 404, 405)
"""A redirection too: nothing is sent anywhere else than to `base_url`. 402 is an account that is empty."""
_BUSY = (403, 408, 409, 425, 429)
"""Worth another try, as is a 5xx. 403 is a key without rights, or one prompt that a gateway's moderation flags: others' answers show."""
_OVERLOADED = (429, 503, 529)
"""Says nothing of the request that met it."""

_SILENT_TRIES = 2
"""So many of one call, while nobody is answered, and the endpoint is taken for gone: a row's time would be over before its last try."""


@dataclass(frozen=True)
class _Failed:
    """A try that failed."""

    problem: str
    pause_seconds: float = 0.0
    """That the endpoint asks for before the next one."""
    overloaded: bool = False
    """Whether it said nothing of the request itself."""
    heard: bool = True
    """Whether the endpoint said anything."""


class HttpLlm:
    """A model behind HTTP. It gives no token ids and so no teacher log-probabilities.

    `failure` is what makes every further request pointless, if anything does: a wrong key or address, or an endpoint that stays away.
    An instance belongs to one event loop.

    Raises:
        ConfigError: the environment variable of the key is not set, or holds what no header can.
    """

    def __init__(self, endpoint: EndpointConfig) -> None:
        self.failure: BaseException | None = None
        self._endpoint = endpoint
        self._url = f"{endpoint.base_url.rstrip('/')}/chat/completions"
        key = _key(endpoint.api_key_env)
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=None,  # `_post` has one for the whole try; httpx's begins anew with every piece of an answer
            limits=httpx.Limits(max_connections=endpoint.max_concurrency),  # else 100
        )
        self._places = asyncio.Semaphore(endpoint.max_concurrency)
        self._answered_at = self._heard_at = 0.0
        self._costs = endpoint.price is not None and endpoint.price.usd(Usage(prompt_tokens=1, completion_tokens=1)) > 0

    async def complete(
        self, messages: Sequence[Message], *, tools: Sequence[Tool] = (), n: int = 1, sampling: Sampling = GREEDY, logprobs: int = 0
    ) -> list[Completion]:
        """`n` completions of a conversation, tool calls written in the student's format; `logprobs` cannot be had as ids.

        An endpoint that gives fewer is asked for the others.

        Raises:
            PromptRefused: the endpoint says that this request is wrong, or gives no completion.
            ConfigError: it does not know us, the path or the model, or answers with a page.
            NoProgress: it failed at every try, or has answered nobody for two of them; for good, unless it answered others meanwhile.
        """
        body = {"model": self._endpoint.model, "messages": list(messages), **_sampling(sampling, self._endpoint.max_tokens_field)}
        if tools:
            body["tools"] = list(tools)
        completions: list[Completion] = []
        while (missing := n - len(completions)) > 0:  # many endpoints give one, whatever they are asked for
            seed = {} if sampling.seed is None else {"seed": sampling.seed + len(completions)}
            async with self._places:
                completions += await self._post({**body, **seed, "n": missing})
        return completions[:n]

    async def score(self, messages: Sequence[Message], text: str, *, tools: Sequence[Tool] = (), logprobs: int = 1) -> Completion:
        """The text as given, without tokens and at no cost: the protocol has no way to ask."""
        return Completion(text=text, usage=Usage(calls=0))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _post(self, body: dict[str, Any]) -> list[Completion]:
        pause, began, failed = self._endpoint.first_backoff_seconds, time.monotonic(), _Failed("")
        for attempt in range(self._endpoint.max_retries + 1):
            if attempt:
                log.warning("%s: %s; try %s", self._url, failed.problem, attempt + 1)
                await asyncio.sleep(max(failed.pause_seconds, pause * random.uniform(0.5, 1)))
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            answer = await self._try(body)
            if not isinstance(answer, _Failed):
                self._answered_at = time.monotonic()
                return answer
            failed = answer
            silent_seconds = time.monotonic() - max(self._heard_at, began)
            if not failed.heard and attempt + 1 >= _SILENT_TRIES and silent_seconds >= _SILENT_TRIES * self._endpoint.timeout_seconds:
                raise self._fail(NoProgress(f"{self._url}: {failed.problem}, {_SILENT_TRIES} times, nor has anybody else had one"))
        problem = f"{self._url}: {failed.problem}, {self._endpoint.max_retries + 1} times"
        if self._answered_at > began and not failed.overloaded:
            raise NoProgress(f"{problem}, while others were answered")
        raise self._fail(NoProgress(f"{problem}; lower max_concurrency or raise max_retries" if failed.overloaded else problem))

    async def _try(self, body: dict[str, Any]) -> list[Completion] | _Failed:
        """The answer's completions, or `_Failed` where another try may do better."""
        try:
            async with asyncio.timeout(self._endpoint.timeout_seconds):
                response = await self._client.post(self._url, json=body)
        except TimeoutError:
            return _Failed(f"no whole answer within {self._endpoint.timeout_seconds:g} s", heard=False)
        except (httpx.TransportError, httpx.DecodingError) as error:
            return _Failed(f"{type(error).__name__} {error}".strip())
        self._heard_at = time.monotonic()
        if response.is_success:
            return self._read(response)
        problem = f"HTTP {response.status_code} {self._said(response)}".strip()
        if response.status_code not in _BUSY and response.status_code < 500:
            raise self._refusal(response.status_code, problem)
        return _Failed(problem, _retry_after(response), response.status_code in _OVERLOADED)

    def _read(self, response: httpx.Response) -> list[Completion] | _Failed:
        """As `_try`; a page that no try would better ends everything."""
        try:
            answer = response.json()
        except (ValueError, RecursionError):
            if response.text.strip() and not response.text.lstrip().startswith("{"):
                raise self._fail(ConfigError(f"{self._url} answered no JSON: {self._said(response)!r}; is base_url right?")) from None
            return _Failed(f"HTTP {response.status_code}, cut short after {len(response.content)} bytes")
        if isinstance(answer, dict) and answer.get("error") and not answer.get("choices"):  # as gateways report what is behind them
            return _Failed(f"HTTP {response.status_code} {self._said(response)}")
        try:
            completions = _completions(answer)
        except (KeyError, TypeError, AttributeError, ValueError):
            return _Failed(f"answered no chat completion: {self._said(response)}")
        if not completions:
            raise PromptRefused(f"{self._url} answered no choice: {self._said(response)}")
        if self._costs and not answer.get("usage"):
            self._costs = False  # one warning is enough
            log.warning("%s does not say what it used: its tokens and dollars are counted as none, and no budget holds them", self._url)
        return completions

    def _said(self, response: httpx.Response) -> str:
        """The beginning of an answer, without the key: some endpoints send that back."""
        key = self._client.headers.get("Authorization", "").removeprefix("Bearer ")
        return (response.text.replace(key, "***") if key else response.text)[:200]

    def _refusal(self, status: int, problem: str) -> Exception:
        if status in _NEVER_RIGHT:
            return self._fail(ConfigError(f"{self._url}: {problem}; check base_url, model and api_key_env"))
        return PromptRefused(f"{self._url}: {problem}")

    def _fail(self, error: Exception) -> Exception:
        self.failure = error
        return error


def _key(api_key_env: str | None) -> str:
    """The key, white space around it left out; empty where none is to be sent. What is wrong with it is said without it."""
    if api_key_env is None:
        return ""
    key = os.environ.get(api_key_env, "").strip()
    if not key:
        raise ConfigError(f"api_key_env: the environment variable {api_key_env} is not set where the endpoint is called from")
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"api_key_env: the environment variable {api_key_env} holds what is no key: line breaks, or other than ASCII")
    return key


def _sampling(sampling: Sampling, max_tokens_field: str) -> dict[str, Any]:
    body: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p, max_tokens_field: sampling.max_tokens}
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.json_schema is not None:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": sampling.json_schema, "strict": True}}
    return body


def _retry_after(response: httpx.Response) -> float:
    """Seconds that the endpoint asks us to wait; 0 where it does not say, or gives a date."""
    value = response.headers.get("Retry-After", "")
    return min(float(value), _LONGEST_PAUSE_SECONDS) if value.isdecimal() else 0.0


def _completions(answer: Any) -> list[Completion]:
    """The choices; the whole request's usage is the first one's, since the protocol does not say whose tokens are whose."""
    usage = answer.get("usage") or {}
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    first = Usage(
        prompt_tokens=usage.get("prompt_tokens") or 0, cached_tokens=cached, completion_tokens=usage.get("completion_tokens") or 0
    )
    return [
        Completion(
            text=_text(choice["message"]),
            finish_reason="length" if choice.get("finish_reason") == "length" else "stop",
            usage=first if at == 0 else Usage(calls=0),
        )
        for at, choice in enumerate(answer["choices"])
    ]


def _text(message: dict[str, Any]) -> str:
    """The answer in the student's format; arguments that are no JSON object stand there as text, so that nobody takes them for a call."""
    functions = [entry["function"] for entry in message.get("tool_calls") or []]
    if not functions:
        return message.get("content") or ""
    calls = [(function["name"], _arguments(function["arguments"] or "{}")) for function in functions]
    if all(isinstance(arguments, dict) for _, arguments in calls):
        return render([Call(name=name, arguments=arguments) for name, arguments in calls])
    bodies = [json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False) for name, arguments in calls]
    return "\n".join(f"<tool_call>\n{body}\n</tool_call>" for body in bodies)


def _arguments(text: str) -> Any:
    try:
        values = json.loads(text)
    except ValueError:
        return text
    return values if isinstance(values, dict) else text
