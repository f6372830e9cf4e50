"""One real engine under a student: its modes, its traces, its death."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from tests.serving.load import kill, replica_pids, wait_for
from tests.trace_collector import Collector, running_collector

from supertiny.llm.config import ScriptedConfig
from supertiny.serving.calibrate import Scored, calibrate, held_out
from supertiny.serving.config import ArmConfig, ServeConfig
from supertiny.serving.port import free_port
from supertiny.serving.run import served
from supertiny.serving.stream import answer_text
from supertiny.serving.traffic import joined
from supertiny.tasks.base import load_task

pytestmark = [pytest.mark.ray, pytest.mark.slow]
LIGHT = [{"role": "user", "content": "turn on the kitchen light"}]
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """Where spans go."""
    with running_collector() as running:
        yield running


@pytest.fixture(scope="module")
def adapter(student_path: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A LoRA adapter of the student, drawn at random."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    folder = str(tmp_path_factory.mktemp("adapter"))
    lora = LoraConfig(r=4, lora_alpha=64, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(student_path), lora).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def url(local_ray: None, serve_config: ServeConfig, collector: Collector, adapter: str) -> Iterator[str]:
    """A cascade of the real student, with an adapter beside it, and a scripted teacher."""
    teacher = ArmConfig(scripted=ScriptedConfig(answer="Ask someone else."))
    student = ArmConfig(adapters={"other": adapter})
    settings = {"mode": "cascade", "student_arm": student, "teacher_arm": teacher, "trace_endpoint": collector.url}
    with served(serve_config.model_copy(update=settings), port=free_port()) as address:
        yield address


def ask(url: str, **fields: object) -> httpx.Response:
    """The answer to one request to `auto`."""
    headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
    return httpx.post(f"{url}/v1/chat/completions", json={"model": "auto", "messages": LIGHT, **fields}, headers=headers, timeout=90)


def contents(answer: httpx.Response, stream: bool) -> str:
    """All that an answer says, calls included."""
    if not stream:
        return answer_text(answer.json()["choices"][0]["message"])

    async def lines() -> AsyncIterator[str]:
        for line in answer.text.splitlines():
            yield line

    return answer_text(asyncio.run(joined(lines())))


def test_the_students_confidence_is_a_probability_and_the_same_each_time(url: str) -> None:
    answers = [ask(url) for _ in range(2)]
    confidences = {answer.headers["x-supertiny-confidence"] for answer in answers}
    assert len(confidences) == 1
    assert 0 < float(confidences.pop()) <= 1


@pytest.mark.parametrize("stream", [False, True])
def test_an_adapter_is_a_model_of_its_own_beside_the_student(url: str, stream: bool) -> None:
    answers = {model: ask(url, model=model, stream=stream, max_tokens=16) for model in ("student", "student:other")}
    texts = {model: contents(answer, stream) for model, answer in answers.items()}
    assert answers["student:other"].headers["x-supertiny-arm"] == "student:other"
    assert texts["student:other"] != texts["student"]
    assert "student:other" in [model["id"] for model in httpx.get(f"{url}/v1/models").json()["data"]]


def test_a_threshold_is_found_on_heldout_prompts(url: str, serve_config: ServeConfig) -> None:
    task = load_task(serve_config.task)

    async def answers() -> list[Scored]:
        async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
            return await held_out(client, task.prompts("heldout")[:60], task)

    scored = asyncio.run(answers())
    found = calibrate(scored, max_error_fraction=0.5)
    print(f"cascade: {len(scored)} of 60 valid, {sum(each.correct for each in scored)} right; {found}")
    assert 0 < found.kept_fraction <= 1
    assert 0 < found.threshold < 1


def test_a_trace_goes_through_the_router_into_vllm(url: str, collector: Collector) -> None:
    ask(url)
    spans = lambda: [body for body in collector.bodies if bytes.fromhex(TRACE) in body]  # noqa: E731
    wait_for("spans of both", lambda: any(b"llm_request" in body for body in spans()) and any(b"generate auto" in body for body in spans()))


def test_a_replica_ends_with_its_engine_and_its_successor_answers(url: str) -> None:
    (replica,) = replica_pids("student-engine")
    engines = [each for each in psutil.Process(replica).children(recursive=True) if "EngineCore" in " ".join(each.cmdline())]
    kill(engines[0].pid)
    statuses = []
    ended = time.monotonic() + 200
    while time.monotonic() < ended:
        statuses.append(ask(url, model="student").status_code)
        if statuses[-1] == 200 and replica_pids("student-engine") != [replica]:
            break
        time.sleep(0.5)
    print(f"engine killed: {statuses}")
    assert statuses[-1] == 200
    assert replica not in replica_pids("student-engine")
