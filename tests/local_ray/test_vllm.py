"""vLLM behind the `Llm` seam, against transformers on the same weights. Needs no Ray; the engine takes a while to import."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tiny_model import make_tiny_model
from tiny_task import TinyTask

from supertiny.config import TaskConfig, validate
from supertiny.errors import MissingInput, NoProgress, PromptRefused
from supertiny.llm.base import Llm, Sampling, pipeline_step
from supertiny.llm.chat import completion_token_ids, prompt_token_ids
from supertiny.llm.config import EngineConfig
from supertiny.llm.vllm import VllmLlm
from supertiny.records import Completion, Prompt
from supertiny.rollout.config import RolloutConfig
from supertiny.rollout.ledger import write_tables
from supertiny.rollout.meter import Clock, Meter
from supertiny.rollout.teacher import TeacherActor
from supertiny.rollout_table import from_table
from supertiny.tasks.base import load_task

pytestmark = pytest.mark.slow
EXACT = EngineConfig(dtype="float32", max_model_len=128, max_num_seqs=32, kv_cache_gib=0.1, num_threads=1)
SAY = [{"role": "user", "content": "turn on the light in the hall"}]
BRIEF = Sampling(max_tokens=4)
HOT = Sampling(temperature=1.5, max_tokens=12, seed=1)


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """vLLM sets variables that other tests' processes must not inherit."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def llm(model: Path) -> Iterator[VllmLlm]:
    llm = VllmLlm(model, EXACT)
    yield llm
    llm.close()


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


def reference_top(model: Path, prompt_ids: list[int], completion_ids: list[int], k: int) -> tuple[list[list[int]], list[list[float]]]:
    """The k likeliest tokens at each position of the completion, and their logprobs, by transformers in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        logits = network(torch.tensor([prompt_ids + completion_ids])).logits[0]
    first = len(prompt_ids) - 1
    top = torch.log_softmax(logits[first : first + len(completion_ids)], dim=-1).topk(k)
    return top.indices.tolist(), top.values.tolist()


def flat(rows: list[list[float]]) -> list[float]:
    return [value for row in rows for value in row]


def test_a_score_is_the_models_own_distribution_over_every_token_of_the_answer(llm: VllmLlm, model: Path, tokenizer: Any) -> None:
    text = 'set the volume to 7, "please"'
    scored = asyncio.run(llm.score(SAY, text, logprobs=7))
    expected_ids = completion_token_ids(tokenizer, text)
    assert scored.token_ids == expected_ids
    assert scored.token_ids[-1] == tokenizer.eos_token_id
    ids, logprobs = reference_top(model, prompt_token_ids(tokenizer, SAY, []), expected_ids, 7)
    assert scored.top_k is not None
    assert scored.top_k.ids == ids
    assert flat(scored.top_k.logprobs) == pytest.approx(flat(logprobs), abs=2e-3)


def test_a_score_has_the_log_probability_of_each_of_the_answers_own_tokens(llm: VllmLlm, model: Path, tokenizer: Any) -> None:
    text = "set the volume to 7"
    scored = asyncio.run(llm.score(SAY, text))
    ids, logprobs = reference_top(model, prompt_token_ids(tokenizer, SAY, []), scored.token_ids, 384)
    expected = [row[own.index(token)] for token, own, row in zip(scored.token_ids, ids, logprobs, strict=True)]
    assert scored.token_logprobs == pytest.approx(expected, abs=2e-3)


def test_a_completions_logprobs_are_at_temperature_1_whatever_it_was_sampled_at(llm: VllmLlm, model: Path, tokenizer: Any) -> None:
    sampled = asyncio.run(llm.complete(SAY, sampling=HOT, logprobs=4))[0]
    ids, logprobs = reference_top(model, prompt_token_ids(tokenizer, SAY, []), sampled.token_ids, 4)
    assert sampled.top_k is not None
    assert sampled.top_k.ids == ids
    assert flat(sampled.top_k.logprobs) == pytest.approx(flat(logprobs), abs=2e-3)


def test_a_greedy_completion_takes_the_likeliest_token_at_every_position(llm: VllmLlm, model: Path, tokenizer: Any) -> None:
    greedy = asyncio.run(llm.complete(SAY, sampling=Sampling(max_tokens=8)))[0]
    prompt_ids = prompt_token_ids(tokenizer, SAY, [])
    likeliest, _ = reference_top(model, prompt_ids, greedy.token_ids, 1)
    assert [[token] for token in greedy.token_ids] == likeliest
    assert (greedy.text, greedy.finish_reason) == (tokenizer.decode(greedy.token_ids), "length")
    assert (greedy.usage.calls, greedy.usage.prompt_tokens, greedy.usage.completion_tokens) == (1, len(prompt_ids), 8)


def test_an_answer_that_ended_by_itself_keeps_its_end_token_among_the_ids_and_not_in_the_text(llm: VllmLlm, tokenizer: Any) -> None:
    many = asyncio.run(llm.complete(SAY, n=64, sampling=Sampling(temperature=2.0, max_tokens=64, seed=0)))
    ended = [completion for completion in many if completion.finish_reason == "stop"]
    assert ended, "of 4,096 tokens at this temperature some end the answer"
    assert all(completion.token_ids[-1] == tokenizer.eos_token_id for completion in ended)
    assert all(completion.text == tokenizer.decode(completion.token_ids[:-1]) for completion in ended)


def test_a_stop_string_cuts_the_text(llm: VllmLlm) -> None:
    whole = asyncio.run(llm.complete(SAY, sampling=HOT))[0].text
    stop = whole[len(whole) // 2 :][:2]
    cut = asyncio.run(llm.complete(SAY, sampling=HOT.model_copy(update={"stop": (stop,)}), logprobs=3))[0]
    assert cut.finish_reason == "stop"
    assert cut.text == whole[: whole.index(stop)]
    assert (cut.token_ids, cut.top_k) == ([], None)  # else they would be others than the text's
    assert cut.usage.completion_tokens > 0
    at_once = asyncio.run(llm.complete(SAY, sampling=HOT.model_copy(update={"stop": (whole[:1],)})))[0]
    assert (at_once.text, at_once.finish_reason) == ("", "stop")


def test_hundreds_of_requests_in_flight_are_each_answered_with_their_own_answer(llm: VllmLlm) -> None:
    async def go() -> list[str]:
        return [scored.text for scored in await asyncio.gather(*(llm.score(SAY, f"set {at}") for at in range(300)))]

    assert asyncio.run(go()) == [f"set {at}" for at in range(300)]


def test_a_prompt_that_is_too_long_is_refused_and_the_next_one_answered(llm: VllmLlm) -> None:
    with pytest.raises(PromptRefused, match="max_model_len 128"):
        asyncio.run(llm.complete([{"role": "user", "content": "light " * 200}]))
    assert asyncio.run(llm.complete(SAY, sampling=Sampling(max_tokens=2)))[0].usage.completion_tokens == 2


def test_a_request_that_nobody_waits_for_any_more_leaves_the_engine(llm: VllmLlm) -> None:
    async def go() -> int:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(llm.complete(SAY, sampling=Sampling(temperature=1.0, max_tokens=90)), 0.01)
        return (await llm.complete(SAY, sampling=Sampling(max_tokens=1)))[0].usage.completion_tokens

    assert asyncio.run(go()) == 1
    assert llm.waiting == 0


class Counters:
    """The engine's own counters; what a class of vLLM's would have for all engines of the process, an instance has for one."""

    def __init__(self) -> None:
        self.prompt = self.cached = self.generated = self.hits = 0

    def __call__(self, vllm_config: Any, engine_index: int = 0) -> Counters:
        return self

    def record(self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0) -> None:
        """As vLLM's StatLoggerBase; what its Prometheus counters vllm:prompt_tokens, … are fed with."""
        if scheduler_stats is not None:
            self.hits += scheduler_stats.prefix_cache_stats.hits
        if iteration_stats is not None:
            self.prompt += iteration_stats.prompt_token_stats.total
            self.cached += iteration_stats.prompt_token_stats.cached_tokens
            self.generated += iteration_stats.num_generation_tokens

    def log(self) -> None:
        """Nothing."""

    def log_engine_initialized(self) -> None:
        """Nothing."""

    def record_sleep_state(self, is_awake: int, level: int) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def counted(model: Path, llm: VllmLlm) -> Iterator[tuple[VllmLlm, Counters]]:
    """An engine with a prefix cache, and its own counters."""
    llm.close()
    counters = Counters()
    one = VllmLlm(
        model, EXACT.model_copy(update={"enable_prefix_caching": True, "max_num_seqs": 4, "max_model_len": 256}), stat_loggers=[counters]
    )
    yield one, counters
    one.close()


LONG = [{"role": "user", "content": "turn on the light in the hall and the kitchen " * 4}]


def test_usage_is_what_the_engines_own_counters_say_to_the_token(counted: tuple[VllmLlm, Counters]) -> None:
    llm, counters = counted
    meter = Meter(llm, Clock())

    async def go() -> None:
        with pipeline_step("first"):
            await meter.complete(LONG, sampling=BRIEF)
        with pipeline_step("many"):
            await asyncio.gather(
                meter.complete(LONG, n=6, sampling=HOT),
                meter.complete(SAY, n=3, sampling=HOT),
                *(meter.score(LONG, "on") for _ in range(3)),
            )
        with pipeline_step("late"):
            late = [asyncio.ensure_future(meter.complete(LONG, n=6, sampling=Sampling(max_tokens=40))) for _ in range(2)]
            while llm.waiting < 12:
                await asyncio.sleep(0)
                assert not any(each.done() for each in late)
            while llm.waiting > 10:  # some of the twelve are answered, some have begun and some wait
                await asyncio.sleep(0.001)
            late[0].cancel()
            late[1].cancel()
            assert [type(each) for each in await asyncio.gather(*late, return_exceptions=True)] == [asyncio.CancelledError] * 2
        with pipeline_step("last"):
            await meter.complete(SAY, sampling=BRIEF)

    asyncio.run(go())
    used = meter.total.usage
    assert (used.prompt_tokens, used.cached_tokens, used.completion_tokens) == (counters.prompt, counters.cached, counters.generated)
    assert counters.hits == counters.cached > 0
    assert meter.steps["many"].usage.calls == 6 + 3 + 3
    assert meter.steps["late"].usage.calls == 12
    assert 0 < meter.steps["late"].usage.completion_tokens < 12 * 40


class TalkTask(TinyTask):
    """As many tokens as there is room for."""

    async def teach(self, prompt: Prompt, llm: Llm) -> Completion:
        """Several completions at once."""
        return (await llm.complete(prompt.messages, n=2, sampling=Sampling(temperature=1.0, max_tokens=150)))[0]


def ledger_of(llm: VllmLlm, folder: Path, task_class: str, **layout: float) -> dict[str, Any]:
    """The ledger's counts of 20 rollouts over an engine."""
    task = TaskConfig(path=task_class, options={"num_prompts": 10, "asked": str(folder / "asked"), "seconds": 0})
    config = validate(RolloutConfig, {"task": task, "layout": layout}, "test")
    prompts = load_task(task).prompts("train")
    rows = pa.table(
        {
            "rollout_id": [f"{prompt.id}/{index}" for prompt in prompts for index in (0, 1)],
            "index": [0, 1] * len(prompts),
            "prompt": [prompt.model_dump_json() for prompt in prompts for _ in (0, 1)],
        }
    )

    async def run() -> pa.Table:
        actor = TeacherActor(lambda: llm, config)
        try:
            return await actor(rows)
        finally:
            await actor.aclose()

    return write_tables(folder, [from_table(asyncio.run(run()), "test")])


def spent_since(counters: Counters, before: tuple[int, int, int]) -> dict[str, int]:
    now = counters.prompt, counters.cached, counters.generated
    names = "prompt_tokens", "cached_tokens", "completion_tokens"
    return {name: after - earlier for name, after, earlier in zip(names, now, before, strict=True)}


def test_a_ledgers_totals_are_what_the_engines_own_counters_say_to_the_token(counted: tuple[VllmLlm, Counters], tmp_path: Path) -> None:
    llm, counters = counted
    before = counters.prompt, counters.cached, counters.generated
    ledger = ledger_of(llm, tmp_path, "tiny_task:TinyTask")
    spent = spent_since(counters, before)
    assert (ledger["rollouts"], ledger["model_calls"]) == (20, 40)
    assert {name: ledger[name] for name in spent} == {name: ledger["total"][name] for name in spent} == spent


def test_a_ledger_has_every_token_of_its_own_engine_that_was_drawn_for_rows_that_took_too_long(
    counted: tuple[VllmLlm, Counters], tmp_path: Path
) -> None:
    llm, counters = counted
    before = counters.prompt, counters.cached, counters.generated
    ledger = ledger_of(llm, tmp_path, f"{__name__}:TalkTask", row_timeout_seconds=0.3)
    spent = spent_since(counters, before)
    assert ledger["rejected_by_reason"]["timed_out"] > 0
    assert spent["completion_tokens"] > 0
    assert {name: ledger[name] for name in spent} == spent


def test_every_one_of_n_completions_reads_the_prompt_and_says_what_the_cache_had_of_it(counted: tuple[VllmLlm, Counters]) -> None:
    llm, counters = counted
    before = counters.prompt, counters.cached
    fresh = [{"role": "user", "content": "set the volume to 7 and play music in the kitchen " * 3}]
    usages = [completion.usage for completion in asyncio.run(llm.complete(fresh, n=6, sampling=HOT))]
    assert counters.prompt - before[0] == 6 * usages[0].prompt_tokens
    assert counters.cached - before[1] == sum(usage.cached_tokens for usage in usages)
    assert len({usage.cached_tokens for usage in usages}) == 2  # the first ones found nothing, the last ones all whole blocks


def test_a_seed_draws_other_completions_of_one_prompt_and_the_same_ones_again(counted: tuple[VllmLlm, Counters]) -> None:
    llm, _ = counted
    first, again = ([one.text for one in asyncio.run(llm.complete(SAY, n=4, sampling=HOT))] for _ in range(2))
    assert first == again
    assert len(set(first)) > 1


def test_models_built_in_turn_free_their_memory(model: Path, counted: tuple[VllmLlm, Counters]) -> None:
    import psutil

    counted[0].close()  # the module's: it has done its work, and closing twice is harmless
    resident = []
    for _ in range(4):
        one = VllmLlm(model, EXACT)
        asyncio.run(one.complete(SAY, sampling=BRIEF))
        one.close()
        resident.append(psutil.Process().memory_info().rss / 2**20)
    assert resident[-1] - resident[0] < 50  # MiB; one engine's keys and values alone take 100


def test_a_closed_model_answers_no_more(model: Path) -> None:
    one = VllmLlm(model, EXACT)
    one.close()
    with pytest.raises(NoProgress, match="closed"):
        asyncio.run(one.complete(SAY, sampling=BRIEF))


def test_an_engine_that_finishes_nothing_in_time_is_given_up(model: Path) -> None:
    one = VllmLlm(model, EXACT.model_copy(update={"no_progress_seconds": 0.001}))
    try:
        with pytest.raises(NoProgress, match="none finished"):
            asyncio.run(one.complete(SAY, sampling=Sampling(max_tokens=64)))
        assert isinstance(one.failure, NoProgress)
    finally:
        one.close()


def test_a_stepping_thread_that_dies_fails_what_waits_with_its_error(model: Path) -> None:
    one = VllmLlm(model, EXACT)

    async def go() -> list[Any]:
        requests = [asyncio.ensure_future(one.complete(SAY, sampling=Sampling(max_tokens=64))) for _ in range(3)]
        await asyncio.sleep(0)
        one._inbox.put("no request")  # type: ignore[arg-type]
        return await asyncio.gather(*requests, return_exceptions=True)

    assert [type(result) for result in asyncio.run(go())] == [AttributeError] * 3
    assert isinstance(one.failure, AttributeError)


def test_a_model_that_is_not_there_is_missed_before_vllm_is_imported(tmp_path: Path, checkout: Path) -> None:
    with pytest.raises(MissingInput, match=r"no config\.json"):
        VllmLlm(tmp_path)
    code = f"""
import sys
from supertiny.llm.vllm import VllmLlm
try:
    VllmLlm({str(tmp_path)!r})
except FileNotFoundError:
    sys.exit("vllm" in sys.modules or "torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(checkout / "platform")}).returncode == 0


def test_a_schema_makes_even_random_weights_answer_in_json(model: Path) -> None:
    import jsonschema

    schema = {
        "type": "object",
        "properties": {"room": {"enum": ["hall", "kitchen"]}, "on": {"type": "boolean"}},
        "required": ["room", "on"],
        "additionalProperties": False,
    }
    one = VllmLlm(model, EXACT)
    try:
        sampling = Sampling(temperature=1.0, seed=0, max_tokens=90, json_schema=schema)
        answers = asyncio.run(one.complete(SAY, n=16, sampling=sampling))
        whole = [json.loads(answer.text) for answer in answers if answer.finish_reason == "stop"]
        assert whole, "what is cut off had no room for its white space"
        for value in whole:
            jsonschema.validate(value, schema)
        with pytest.raises(PromptRefused, match="vLLM refuses the request"):
            asyncio.run(one.complete(SAY, sampling=BRIEF.model_copy(update={"json_schema": {"type": "no such type"}})))
        with pytest.raises(PromptRefused, match="under a JSON schema the log-probabilities are not the model's own"):
            asyncio.run(one.complete(SAY, sampling=sampling, logprobs=5))
        assert asyncio.run(one.complete(SAY, sampling=BRIEF))[0].usage.completion_tokens == 4
    finally:
        one.close()


def test_prompts_that_start_alike_are_answered_from_the_cache_and_scored_without_it(model: Path) -> None:
    long = [{"role": "system", "content": "turn on the light in the hall " * 5}, *SAY]
    one = VllmLlm(model, EXACT.model_copy(update={"enable_prefix_caching": True}))
    try:
        first, second = (asyncio.run(one.complete(long, sampling=BRIEF))[0] for _ in range(2))
        scores = [asyncio.run(one.score(long, "set 7", logprobs=3)) for _ in range(2)]
    finally:
        one.close()
    assert (first.usage.cached_tokens, second.usage.cached_tokens >= 32) == (0, True)
    assert first.token_ids == second.token_ids
    assert scores[0].top_k == scores[1].top_k


def test_an_adapter_answers_as_peft_does_over_the_same_weights(model: Path, tokenizer: Any, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    adapted = get_peft_model(network, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path)
    prompt_ids, answer_ids = prompt_token_ids(tokenizer, SAY, []), completion_token_ids(tokenizer, "set 7")
    with torch.no_grad():
        logits = adapted(torch.tensor([prompt_ids + answer_ids])).logits[0, len(prompt_ids) - 1 : -1]
    expected = torch.log_softmax(logits, dim=-1).topk(3)

    one = VllmLlm(model, EXACT.model_copy(update={"adapter": str(tmp_path)}))
    try:
        scored = asyncio.run(one.score(SAY, "set 7", logprobs=3))
    finally:
        one.close()
    assert scored.top_k is not None
    assert scored.top_k.ids == expected.indices.tolist()
    assert flat(scored.top_k.logprobs) == pytest.approx(flat(expected.values.tolist()), abs=2e-3)
    assert flat(scored.top_k.logprobs) != pytest.approx(flat(reference_top(model, prompt_ids, answer_ids, 3)[1]), abs=2e-3)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two workers need two cores")
def test_a_model_over_two_processes_scores_as_in_one(model: Path, tokenizer: Any) -> None:
    one = VllmLlm(model, EXACT.model_copy(update={"tensor_parallel_size": 2}))
    try:
        scored = asyncio.run(one.score(SAY, "set 7", logprobs=3))
    finally:
        one.close()
    prompt_ids, answer_ids = prompt_token_ids(tokenizer, SAY, []), completion_token_ids(tokenizer, "set 7")
    ids, logprobs = reference_top(model, prompt_ids, answer_ids, 3)
    assert scored.top_k is not None
    assert scored.top_k.ids == ids
    assert flat(scored.top_k.logprobs) == pytest.approx(flat(logprobs), abs=2e-3)
