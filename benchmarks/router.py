"""The router against Serve LLM's own ingress over the same engine: latency added, throughput kept.

    python benchmarks/router.py                        # both parts, on two cores some ten minutes
    python benchmarks/router.py --part scripted        # without vLLM: one minute

  ours     `supertiny.serving`: API key, validation, assignment of a session by the split (`auto`, all of it the student's), metrics
  theirs   `ray.serve.llm`'s OpenAiIngress, tuned: streamed tokens are not held back, no access log, as many replicas as ours. Its
           clients send the task's tools, which ours adds: the engine gets the same request
  plain    theirs again, without the tools: less work for it than ours has, and the embedded base model's prompt is the same
  vllm     `vllm serve` by itself, an engine of its own with the same settings; with `--vllm`, for the table alone

**Engine.** The embedded base model, 8 tokens a completion, greedy; ours and theirs go to one replica of one deployment. Closed loops
of 1, 8 and 32 clients, and streams of one client. **Scripted.** An engine that sleeps 20 ms, at 200 requests a second, come what may;
beside one as slow for theirs.

They take turns, `--rounds` short ones each in an order that changes, so that a noisy machine is as noisy for all; the quantiles are over
the requests of all rounds. The last line is one JSON object:

  added_p50_ms, added_p99_ms       ours minus theirs, engine, 8 clients
  throughput_vs_tuned_ingress      ours over theirs, requests a second, engine, 32 clients
  added_ttft_ms                    ours minus theirs, median time to the first event, engine, 1 client. Both send it with the engine's
                                   first token; what comes after, ours holds back while it may be the start of a call
  plain_…                          the same against plain
  scripted_…                       the same of the scripted engines at 200 requests a second; `answered` are those that were
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import Any

import httpx
from bare_vllm import bare_vllm

from supertiny.artifacts import alias_path, open_artifact, write_atomically
from supertiny.config import TaskConfig
from supertiny.llm.config import ScriptedConfig
from supertiny.records import Tool
from supertiny.serving.config import ArmConfig, ServeConfig
from supertiny.serving.keys import hash_of
from supertiny.serving.port import free_port
from supertiny.serving.traffic import nearest_rank
from supertiny.tasks.base import load_task

MODEL = "package://supertiny.tasks.assistant/models/base"
MESSAGES = [{"role": "user", "content": "turn on the light in the kitchen please"}]
TOKENS, SCRIPTED_SECONDS, RATE = 8, 0.02, 200.0
KEYS_VARIABLE, KEY = "SUPERTINY_BENCHMARK_KEYS", f"st-{secrets.token_urlsafe(32)}"
INGRESS_REPLICAS = 1
"""Of each system: more of them only share the same two cores."""


@dataclass(frozen=True)
class Sent:
    """One request: whether it was answered, how long it took, and when its first event came."""

    ok: bool
    seconds: float
    first_seconds: float | None


@dataclass(frozen=True)
class Round:
    """Requests of one system, and how long they took together."""

    sent: list[Sent]
    seconds: float

    def __add__(self, other: Round) -> Round:
        return Round(self.sent + other.sent, self.seconds + other.seconds)

    def ms(self, fraction: float) -> float:
        """A quantile of the answered ones' latency."""
        return 1000 * nearest_rank(sorted(each.seconds for each in self.sent if each.ok), fraction)

    @property
    def first_ms(self) -> float:
        """Median time to the first event."""
        return 1000 * statistics.median(each.first_seconds for each in self.sent if each.first_seconds is not None)

    @property
    def per_second(self) -> float:
        """Answered requests."""
        return sum(each.ok for each in self.sent) / self.seconds

    @property
    def answered(self) -> float:
        """Share of the requests."""
        return sum(each.ok for each in self.sent) / len(self.sent)


@dataclass(frozen=True)
class System:
    """Where a system answers, as what, and what its clients send beside the conversation."""

    name: str
    url: str
    model: str
    headers: dict[str, str] = field(default_factory=dict)
    tools: Sequence[Tool] = ()


def main() -> int:
    """Measure, print the table, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["engine", "scripted", "all"], default="all")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each system")
    parser.add_argument("--seconds", type=float, default=3.0, help="of one turn")
    parser.add_argument("--vllm", action="store_true", help="measure `vllm serve` too; four minutes more")
    flags = parser.parse_args()
    numbers: dict[str, float] = {}
    with local_ray():
        if flags.part != "engine":
            numbers |= scripted_part(flags.rounds, flags.seconds)
        if flags.part != "scripted":
            numbers |= engine_part(flags.rounds, flags.seconds, flags.vllm)
    print(json.dumps({name: round(value, 3) for name, value in numbers.items()}))
    return 0


def engine_part(rounds: int, seconds: float, with_vllm: bool) -> dict[str, float]:
    """Ours and theirs over one vLLM engine."""
    with ExitStack() as stack:
        ours, plain = stack.enter_context(systems(ArmConfig(max_model_len=256), "student-engine"))
        tools = load_task(TaskConfig()).tools
        contenders = [ours, replace(plain, tools=tools), replace(plain, name="plain")]
        if with_vllm:
            url = stack.enter_context(bare_vllm(open_artifact(MODEL, ".", "model").path))
            contenders.append(System("vllm", url, "student", tools=tools))
        one, eight, many = (turns(contenders, rounds, partial(closed, clients=clients, seconds=seconds)) for clients in (1, 8, 32))
        streams = turns(contenders, rounds, partial(closed, clients=1, seconds=seconds, stream=True))
    for clients, by_system in ((1, one), (8, eight), (32, many)):
        report(clients, by_system)
    for name, turn in streams.items():
        print(f"{name:>8} {'stream':>6}  first event after {turn.first_ms:5.1f} ms", flush=True)
    return {
        f"{prefix}{name}": value
        for prefix, other in (("", "theirs"), ("plain_", "plain"))
        for name, value in {
            **added(eight, other),
            "throughput_vs_tuned_ingress": many["ours"].per_second / many[other].per_second,
            "added_ttft_ms": streams["ours"].first_ms - streams[other].first_ms,
        }.items()
    }


def scripted_part(rounds: int, seconds: float) -> dict[str, float]:
    """Ours and theirs at a fixed rate, over engines that only sleep."""
    scripted = ScriptedConfig(answer="done", delay_seconds=SCRIPTED_SECONDS)
    with systems(ArmConfig(scripted=scripted, max_ongoing_requests=256), None) as both:
        by_system = turns(both, rounds, partial(open_loop, per_second=RATE, seconds=seconds))
    report(RATE, by_system)
    numbers = added(by_system, "theirs") | {"answered": by_system["ours"].answered, "answered_by_theirs": by_system["theirs"].answered}
    return {f"scripted_{name}": value for name, value in numbers.items()}


def added(by_system: Mapping[str, Round], other: str) -> dict[str, float]:
    """Ours minus another's latency."""
    ours, theirs = by_system["ours"], by_system[other]
    return {"added_p50_ms": ours.ms(0.5) - theirs.ms(0.5), "added_p99_ms": ours.ms(0.99) - theirs.ms(0.99)}


@contextmanager
def local_ray() -> Iterator[None]:
    """A Ray for this benchmark, with the routers' keys in its environment."""
    os.environ[KEYS_VARIABLE] = f'[benchmark]\nsha256 = "{hash_of(KEY)}"\nrequests_per_minute = 1000000\nconcurrency = 1000\n'
    os.environ |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    logging.getLogger("httpx").setLevel(logging.WARNING)  # Ray turns logging on, and a line a request costs milliseconds
    import ray  # reads the token's settings

    with tempfile.TemporaryDirectory(prefix="supertiny-") as folder:
        os.environ["RAY_TMPDIR"] = folder
        ray.init("local", num_cpus=8, include_dashboard=False, object_store_memory=512 * 2**20, log_to_driver=False)
        yield
        ray.shutdown()


@contextmanager
def systems(arm: ArmConfig, shared_engine: str | None) -> Iterator[tuple[System, System]]:
    """Both applications behind one proxy; theirs over our engine's deployment where it is named, else over a scripted one."""
    from ray import serve

    from supertiny.serving.run import served

    with tempfile.TemporaryDirectory() as root:
        promote(root)
        config = ServeConfig(
            run_root=root,
            traffic_fraction=1.0,
            student_arm=arm,
            teacher_arm=ArmConfig(scripted=ScriptedConfig()),
            router_replicas=INGRESS_REPLICAS,
            api_keys=f"env:{KEYS_VARIABLE}",
        )
        with served(config, port=free_port()) as url:
            serve.run(their_ingress(shared_engine), name="theirs", route_prefix="/theirs", logging_config={"enable_access_log": False})
            ours = System("ours", url, "auto", {"authorization": f"Bearer {KEY}", "x-session-id": "benchmark"})
            yield ours, System("theirs", f"{url}/theirs", "student")


def promote(root: str) -> None:
    """Make the base model the promoted student of a run."""
    write_atomically(alias_path("student@production", root), open_artifact(MODEL, root, "model").as_parent().model_dump_json())


def their_ingress(shared_engine: str | None) -> Any:
    """Serve LLM's ingress, over a deployment of our application or a scripted one of its own."""
    from ray import serve
    from ray.llm._internal.serve.core.configs.openai_api_models import ModelCard  # without a public home
    from ray.serve.llm.ingress import OpenAiIngress, make_fastapi_ingress

    from supertiny.serving.run import APPLICATION

    class Ingress(OpenAiIngress):  # type: ignore[misc]
        def __init__(self, cards: dict[str, ModelCard], scripted: Any) -> None:
            super().__init__({"student": scripted or serve.get_deployment_handle(shared_engine, APPLICATION)}, cards)

    card = ModelCard(id="student", object="model", owned_by="benchmark", permission=[], metadata={})
    deployment: Any = serve.deployment(
        make_fastapi_ingress(Ingress),
        name="ingress",
        num_replicas=INGRESS_REPLICAS,
        max_ongoing_requests=1000,
        ray_actor_options={"num_cpus": 0},
    )
    return deployment.bind({"student": card}, None if shared_engine else scripted_for_theirs())


def scripted_for_theirs() -> Any:
    """A deployment with the face of `ray.serve.llm`'s server, as slow as our scripted engine."""
    from ray import serve
    from ray.serve.llm.openai_api_models import ChatCompletionRequest, ChatCompletionResponse

    class Scripted:
        async def chat(self, request: ChatCompletionRequest, raw_request: Any = None) -> Any:
            await asyncio.sleep(SCRIPTED_SECONDS)
            choice = {"index": 0, "message": {"role": "assistant", "content": "done"}, "finish_reason": "stop"}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            yield ChatCompletionResponse(model="student", choices=[choice], usage=usage)

    deploy: Any = serve.deployment
    return deploy(Scripted, name="scripted", max_ongoing_requests=256, ray_actor_options={"num_cpus": 0}).bind()


def turns(contenders: Sequence[System], rounds: int, measure: Callable[[System], Round]) -> dict[str, Round]:
    """All rounds of each system, which take turns in an order that changes; one of each before is not counted."""
    for system in contenders:
        measure(system)
    by_system = {system.name: Round([], 0.0) for system in contenders}
    order, random = list(contenders), Random(0)
    for _ in range(rounds):
        random.shuffle(order)
        for system in order:
            by_system[system.name] += measure(system)
    return by_system


def closed(system: System, clients: int, seconds: float, *, stream: bool = False) -> Round:
    """So many clients, each with one request after the other."""

    async def run() -> Round:
        sent: list[Sent] = []
        async with client_of(system, clients) as client:
            started = time.monotonic()

            async def work() -> None:
                while time.monotonic() - started < seconds:
                    sent.append(await ask(client, system, stream=stream))

            await asyncio.gather(*(work() for _ in range(clients)))
            return Round(sent, time.monotonic() - started)

    return asyncio.run(run())


def open_loop(system: System, per_second: float, seconds: float) -> Round:
    """Requests at a rate, whether or not the earlier ones were answered."""

    async def run() -> Round:
        async with client_of(system, 256) as client, asyncio.TaskGroup() as group:
            started, tasks = time.monotonic(), []
            for index in range(int(per_second * seconds)):
                await asyncio.sleep(max(started + index / per_second - time.monotonic(), 0))
                tasks.append(group.create_task(ask(client, system, stream=False)))
            sent = [await task for task in tasks]
            return Round(sent, time.monotonic() - started)

    return asyncio.run(run())


def client_of(system: System, connections: int) -> httpx.AsyncClient:
    """An HTTP client with connections that stay open."""
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    return httpx.AsyncClient(base_url=system.url, headers=system.headers, timeout=60, limits=limits, trust_env=False)


async def ask(client: httpx.AsyncClient, system: System, *, stream: bool) -> Sent:
    """One request."""
    body: dict[str, Any] = {"model": system.model, "messages": MESSAGES, "max_tokens": TOKENS, "temperature": 0, "stream": stream}
    if system.tools:
        body |= {"tools": list(system.tools), "tool_choice": "none"}  # shown to the chat template, and no more, as our router does
    started, first, ok = time.monotonic(), None, False
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            async for text in answer.aiter_text():
                if first is None and stream and text.startswith("data:"):
                    first = time.monotonic() - started
            ok = answer.status_code == 200
    except httpx.HTTPError:
        pass  # counted: it was not answered
    return Sent(ok, time.monotonic() - started, first)


def report(clients: float, by_system: Mapping[str, Round]) -> None:
    """Some lines of the table."""
    for name, turn in by_system.items():
        times = f"p50 {turn.ms(0.5):7.1f} ms  p99 {turn.ms(0.99):7.1f} ms"
        print(f"{name:>8} {clients:>6g}  {times}  {turn.per_second:6.1f} requests/s", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
