"""What a served engine's options are worth with the tiny model: tokens a second and latency against the default.

    python benchmarks/engine_options.py                                    # four minutes on a CPU
    python benchmarks/engine_options.py --only ngram --runs 5              # one of them, more often
    python benchmarks/engine_options.py --model <folder>                   # of another model than the embedded base

Every option is a setting of an arm (`supertiny.serving.config.ArmConfig`), given to vLLM by the same function as in serving. vLLM's engine
runs in this process, so that neither Ray nor HTTP is in the figures. All take turns, every other time from the last to the first; medians
are compared, and `default_spread` is the default's highest tokens a second over its lowest. Two workloads, both greedy:

  task    held-out prompts of the embedded task, some 27 tokens, 8 in flight, after that 1
  system  the same behind one system prompt of some 240 tokens, 8 in flight

An option that this build of vLLM refuses, or that lacks a package, is named with the reason. The last line is one JSON object. By option:
`tokens_per_second` (task, 8 in flight), `system_tokens_per_second`, `p50_seconds` (task, 1 in flight), each over the default's, and
`same_answers`: the share of the task's prompts that it answers token by token as the default does.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supertiny.artifacts import open_artifact
from supertiny.config import TaskConfig
from supertiny.errors import ConfigError
from supertiny.llm.chat import prompt_token_ids
from supertiny.serving.config import ArmConfig
from supertiny.serving.engine_options import engine_arguments
from supertiny.tasks.base import load_task

QUIET = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}
"""Read when vLLM is imported."""
MODEL = "package://supertiny.tasks.assistant/models/base"
SYSTEM = "You are the voice assistant of a home. " * 11
MAX_TOKENS, BUSY, NUM_ADAPTERS = 48, 8, 4
OPTIONS: dict[str, dict[str, Any]] = {
    "no_prefix_caching": {"prefix_caching": False},
    "vllms_block_size": {"block_size": None},
    "no_chunked_prefill": {"chunked_prefill": False},
    "steps_of_256_tokens": {"max_num_batched_tokens": 256},
    "ngram": {"speculation": {"method": "ngram"}},
    "suffix": {"speculation": {"method": "suffix"}},
}


@dataclass(frozen=True)
class Workloads:
    """Prompts as token ids."""

    task: list[list[int]]
    system: list[list[int]]


@dataclass(frozen=True)
class Figures:
    """Of one engine."""

    tokens_per_second: float
    system_tokens_per_second: float
    p50_seconds: float
    answers: list[tuple[int, ...]]


def main() -> int:
    """Measure, print a line an option, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model folder (default: the embedded base)")
    parser.add_argument("--runs", type=int, default=2, help="turns of each (default: %(default)s)")
    parser.add_argument("--only", action="append", help="an option; repeatable")
    parser.add_argument("--prompts", type=int, default=160, help="of each workload (default: %(default)s)")
    flags = parser.parse_args()
    os.environ.update(QUIET)
    model = Path(flags.model).absolute() if flags.model else open_artifact(MODEL, ".", "model").path
    workloads = workloads_of(model, flags.prompts)
    with tempfile.TemporaryDirectory() as folder:
        options = OPTIONS | {f"{NUM_ADAPTERS}_adapters": {"adapters": adapters(model, Path(folder))}}
        chosen = {name: options[name] for name in flags.only or options}
        measured = in_turns({"default": {}, **chosen}, flags.runs, lambda changes: attempt(model, changes, workloads))
    for name, runs in measured.items():
        for result in runs:
            print(f"{name:>20} {result if isinstance(result, str) else described(result)}", flush=True)
    print(json.dumps(summary(measured)))
    return 0


def summary(measured: dict[str, list[Any]]) -> dict[str, Any]:
    """The ratios of every option, or why it was refused."""
    default = measured["default"]
    speeds = [result.tokens_per_second for result in default]
    numbers: dict[str, Any] = {"default_spread": round(max(speeds) / min(speeds), 3)}
    for name, runs in measured.items():
        if name != "default":
            numbers[name] = runs[0] if isinstance(runs[0], str) else ratios(runs, default)
    return numbers


def in_turns(options: dict[str, dict[str, Any]], runs: int, measure: Callable[[dict[str, Any]], Figures | str]) -> dict[str, list[Any]]:
    """Every option so many times, there and back."""
    measured: dict[str, list[Any]] = {name: [] for name in options}
    for run in range(runs):
        for name in options if run % 2 == 0 else reversed(options):
            measured[name].append(measure(options[name]))
    return measured


def attempt(model: Path, changes: dict[str, Any], workloads: Workloads) -> Figures | str:
    """The figures of an option, or why it cannot be had."""
    try:
        return figures(model, ArmConfig(**changes), workloads)
    except (ConfigError, ValueError, NotImplementedError) as error:
        return f"refused: {error}"


def figures(model: Path, arm: ArmConfig, workloads: Workloads) -> Figures:
    """Build the engine, warm it up, and measure it."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.llm_engine import LLMEngine

    arguments = EngineArgs(model=str(model), **engine_arguments(arm), disable_log_stats=True)
    engine = LLMEngine.from_engine_args(arguments, usage_context=UsageContext.OPENAI_API_SERVER)  # whose defaults serving gets
    loras = requests_of(arm)
    try:
        closed(engine, workloads.task[:32], BUSY, loras), closed(engine, workloads.system[:8], BUSY, loras)
        answers, _, busy = closed(engine, workloads.task, BUSY, loras)
        shared, _, system = closed(engine, workloads.system, BUSY, loras)
        _, alone, _ = closed(engine, workloads.task[: len(workloads.task) // 4], 1, loras)
    finally:
        engine.engine_core.shutdown()
        del engine
        gc.collect()
    return Figures(sum(map(len, answers)) / busy, sum(map(len, shared)) / system, statistics.median(alone), answers)


def closed(engine: Any, prompts: Sequence[list[int]], in_flight: int, loras: list[Any]) -> tuple[list[tuple[int, ...]], list[float], float]:
    """All prompts, so many at a time: answers in their order, seconds of each, and seconds of all."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY)
    answers: dict[int, tuple[int, ...]] = {}
    seconds: dict[int, float] = {}
    begun: dict[str, tuple[int, float]] = {}
    waiting = iter(enumerate(prompts))
    started = time.perf_counter()

    def send_next() -> None:
        for at, prompt in waiting:
            name = f"{at}-{time.perf_counter_ns()}"
            begun[name] = (at, time.perf_counter())
            lora = loras[at % len(loras)] if loras else None
            engine.add_request(name, {"type": "token", "prompt_token_ids": prompt}, params, lora_request=lora)
            return

    for _ in range(in_flight):
        send_next()
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                at, since = begun[output.request_id]
                answers[at], seconds[at] = tuple(output.outputs[0].token_ids), time.perf_counter() - since
                send_next()
    return [answers[at] for at in sorted(answers)], list(seconds.values()), time.perf_counter() - started


def workloads_of(model: Path, count: int) -> Workloads:
    """The prompts of both, as the student sees them."""
    from transformers import AutoTokenizer

    task, tokenizer = load_task(TaskConfig()), AutoTokenizer.from_pretrained(model)
    prompts = task.prompts("heldout")[:count]
    system = {"role": "system", "content": SYSTEM}
    return Workloads(
        [prompt_token_ids(tokenizer, prompt.messages, task.tools) for prompt in prompts],
        [prompt_token_ids(tokenizer, [system, *prompt.messages], task.tools) for prompt in prompts],
    )


def adapters(model: Path, folder: Path) -> dict[str, str]:
    """Untrained LoRA adapters of rank 8, by name: they cost what others do and change no answer."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    paths = {f"adapter-{at}": str(folder / str(at)) for at in range(NUM_ADAPTERS)}
    for path in paths.values():
        adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
        adapted.save_pretrained(path)
    return paths


def requests_of(arm: ArmConfig) -> list[Any]:
    """vLLM's names of an arm's adapters; requests take them in turn."""
    from vllm.lora.request import LoRARequest

    return [LoRARequest(lora_name=name, lora_int_id=at, lora_path=path) for at, (name, path) in enumerate(arm.adapters.items(), 1)]


def ratios(results: Sequence[Figures], default: Sequence[Figures]) -> dict[str, float]:
    """Medians of an option over those of the default."""
    names = ("tokens_per_second", "system_tokens_per_second", "p50_seconds")
    over = {name: middle(results, name) / middle(default, name) for name in names}
    same = statistics.mean(mine == other for mine, other in zip(results[0].answers, default[0].answers, strict=True))
    return {**{name: round(value, 3) for name, value in over.items()}, "same_answers": round(same, 3)}


def middle(results: Sequence[Figures], name: str) -> float:
    """The median of a figure."""
    return statistics.median(getattr(result, name) for result in results)


def described(result: Figures) -> str:
    """One line of the table."""
    speeds = f"{result.tokens_per_second:7.0f} tokens/s, behind a system prompt {result.system_tokens_per_second:7.0f}"
    return f"{speeds}; p50 alone {1000 * result.p50_seconds:6.1f} ms"


if __name__ == "__main__":
    raise SystemExit(main())
