"""Arms that answer by script, and a router over them: no Ray, no model, the whole HTTP face."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import httpx

from supertiny.errors import MalformedCall
from supertiny.llm.base import Llm, Sampling
from supertiny.records import Call, Completion, Message, Prompt, Tool, Usage, Verdict
from supertiny.serving.answers import Answers
from supertiny.serving.arm import Arm
from supertiny.serving.config import LimitsConfig, RoutingConfig
from supertiny.serving.keys import Guard, KeyConfig
from supertiny.serving.meter import Meter
from supertiny.serving.probes import Probes
from supertiny.serving.router import router_app
from supertiny.serving.stream import Piece
from supertiny.serving.tracing import NoTracer
from supertiny.tasks.calls import parse, render

HELLO: list[Message] = [{"role": "user", "content": "hello"}]
LIMITS = LimitsConfig(body_bytes=4096, completion_tokens=8, seconds=0.2)
KITCHEN = render([Call(name="set_light", arguments={"room": "kitchen"})])
HALL = render([Call(name="set_light", arguments={"room": "hall"})])


class LightTask:
    """Calls of `set_light` alone are valid."""

    tools: list[Tool] = [{"type": "function", "function": {"name": "set_light", "parameters": {"type": "object"}}}]  # noqa: RUF012

    def prompts(self, split: str) -> list[Prompt]:
        return []

    async def teach(self, prompt: Prompt, llm: Llm) -> Completion:
        raise NotImplementedError

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        try:
            calls = parse(text)
        except MalformedCall:
            return Verdict(accepted=False, score=-1, reason="malformed")
        right = prompt.reference is None or calls == prompt.reference
        return Verdict(accepted=right and all(call.name == "set_light" for call in calls), score=1 if right else 0)


class FakeArm:
    """Answers in one call and some text; raises, hangs or breaks off when it is told to. `cold` None: nobody says whether it is."""

    def __init__(
        self,
        error: Exception | None = None,
        seconds: float = 0.0,
        break_after: int | None = None,
        text: str = f"Sure.\n{KITCHEN}",
        logprobs: list[float] | None = None,
        cold: bool | Exception | None = False,
    ) -> None:
        self.samplings: list[Sampling] = []
        self.cancelled = 0
        self.error = error
        self.seconds = seconds
        self._break_after = break_after
        self._text = text
        self._logprobs = logprobs
        self._cold = cold

    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, logprobs: int = 0) -> Completion:
        self.samplings.append(sampling)
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error:
            raise self.error
        usage = Usage(calls=3, prompt_tokens=30, completion_tokens=9)
        return Completion(text=self._text, usage=usage, token_logprobs=self._logprobs if logprobs else None)

    async def stream(self, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[Piece]:
        completion = await self.complete(messages, sampling)
        for index, word in enumerate(completion.text.split("\n")):
            if index == self._break_after:
                raise RuntimeError("secret path /etc/shadow")
            yield Piece(text=word)
        yield Piece(finish_reason="stop", usage=completion.usage)

    async def starting(self) -> bool:
        if self._cold is None:
            await asyncio.sleep(3600)
        if isinstance(self._cold, Exception):
            raise self._cold
        return bool(self._cold)

    async def check(self) -> None:
        await self.complete([], Sampling(max_tokens=1))


class Served:
    """A router over fake arms, in one event loop; the teacher is always there.

    Args:
        routing: a `RoutingConfig`'s fields.
        arms: by name.
    """

    def __init__(
        self,
        routing: Mapping[str, Any] | None = None,
        *,
        keys: Mapping[str, KeyConfig] | None = None,
        limits: LimitsConfig = LIMITS,
        promoted: bool = True,
        **arms: Arm,
    ) -> None:
        every: dict[str, Arm] = {"teacher": FakeArm(), **arms}
        self.meter = Meter()
        self.now = 0.0
        self.answers = Answers(
            every, LightTask(), RoutingConfig(**(routing or {})), limits, self.meter, NoTracer(), may_answer=promoted and "student" in arms
        )
        guard = Guard(keys, 1, lambda: self.now)
        self.app = router_app(self.answers, guard, Probes(every))
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://router")
        self._runner = asyncio.Runner()
        weakref.finalize(self, self._runner.get_loop().close)  # unlike the runner's own, whatever loop runs when this is collected

    def run(self, work: Any) -> Any:
        """What a coroutine gives; copies for shadows are waited for."""

        async def all_of_it() -> Any:
            result = await work
            while len(asyncio.all_tasks()) > 1:
                await asyncio.sleep(0.005)
            return result

        return self._runner.run(all_of_it())

    def ask(self, headers: dict[str, str] | None = None, path: str = "/v1/chat/completions", **fields: Any) -> httpx.Response:
        """The answer to one request."""
        prompt = {"messages": HELLO} if "chat" in path else {"prompt": "hello"}
        answer: httpx.Response = self.run(self.client.post(path, json={"model": "auto", **prompt, **fields}, headers=headers))
        return answer

    def get(self, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
        """The answer to a GET."""
        answer: httpx.Response = self.run(self.client.get(path, headers=headers))
        return answer
