"""Rows a second of a rollout against raw vLLM, and with 1, 2 and 4 engines side by side.

    python benchmarks/rollout.py                                          # on two cores some ten minutes
    python benchmarks/rollout.py --part scaling --rows 320 --runs 1       # a quick look at the graph alone

**Engines.** The same prompts, tokens of output, model and engine settings, one OpenMP thread an engine, on the same machine:

  ours          `supertiny.rollout.pipeline.rollout`: Ray Data, the pipelines in their own process, verdicts, tables. One call a row
  async_llm     vLLM's `AsyncLLM`, every request submitted at once
  llm_generate  vLLM's `LLM.generate` on the whole list

The two of vLLM get token ids, give no text, and have answered a few prompts before they are timed; ours renders the conversation, gives
text and has not. A row counts when its completion is there. At steady state an eighth of the rows at either end is left out, for ours and
for async_llm; llm_generate does not say when a row was done, so it is timed from the first to the last. `whole_…` compares all three so.

The models: Qwen2.5-0.5B's shape with random weights, so that the engine is what is timed, and the embedded task's teacher (`tiny_…`).

**Scaling.** The graph alone: scripted engines of 32 places that take half a second a call, so 64 rows a second. 1, 2 and 4, each on
a simulated node of its own (`ray.cluster_utils.Cluster`), as many rows for each, after a short rollout that is not timed. A row counts
when its block is on disk.
`scaling_4_replicas` is the rate of 4 over 4 times that of 1, both at steady state.

Every measurement has a process of its own, and is made `--runs` times in it; medians are compared. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event, Thread
from typing import Any

from supertiny.artifacts import MANIFEST, Manifest, file_entries, resolve, write_atomically
from supertiny.config import TaskConfig
from supertiny.llm.base import Llm, Sampling
from supertiny.llm.config import EngineConfig, ScriptedConfig
from supertiny.records import Completion, Message, Prompt, Tool, Verdict
from supertiny.rollout.blocks import finished_names
from supertiny.rollout.config import LayoutConfig, RolloutConfig

TEACHER = "package://supertiny.tasks.assistant/models/teacher"
SYSTEMS, REPLICAS = ("ours", "async_llm", "llm_generate"), (1, 2, 4)
ENGINE = EngineConfig(max_model_len=128, max_num_seqs=16, kv_cache_gib=0.5)
TINY_ROWS = 16
"""Rows of the tiny model for each of the large one's: it is that much faster, and more."""
BLOCK_ROWS = LayoutConfig().block_rows
SCRIPTED = ScriptedConfig(delay_seconds=0.5, max_num_seqs=32)
CPUS_OF_A_NODE = 3
"""Logical; an engine takes all of a node's, and the head node has fewer: so each engine has a node, and Ray Data's tasks have the head."""
QUIET = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}
Run = dict[str, Any]
"""`steady` and `whole` rows a second, and the tokens of output; `steady` may be None."""


class OneCall:
    """A task of one call a prompt, which accepts everything.

    Args:
        num_prompts: p00000, p00001, ...
        notes: file that gets a line a row: when its call began and ended, on the machine's monotonic clock. None notes nothing.
    """

    tools: list[Tool] = []  # noqa: RUF012 - the protocol's

    def __init__(self, num_prompts: int, notes: str | None = None) -> None:
        self._num_prompts, self._notes = num_prompts, notes

    def prompts(self, split: str) -> list[Prompt]:
        """The same for every split."""
        return [Prompt(id=f"p{at:05d}", messages=messages(at)) for at in range(self._num_prompts)]

    async def teach(self, prompt: Prompt, llm: Llm) -> Completion:
        """The one call."""
        began = time.monotonic()
        completion = (await llm.complete(prompt.messages, sampling=Sampling(max_tokens=num_tokens(int(prompt.id[1:])))))[0]
        if self._notes:
            with open(self._notes, "a") as file:
                file.write(f"{began} {time.monotonic()}\n")
        return completion

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """Yes."""
        return Verdict(accepted=True, score=1)


def messages(at: int) -> list[Message]:
    """A request of some twenty tokens."""
    return [{"role": "user", "content": f"set a timer for {1 + at % 60} minutes in room {at}"}]


def num_tokens(at: int) -> int:
    """Longest completion of a prompt; they differ, so that requests begin and end at different times."""
    return 8 + 5 * at % 17


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("engines", "scaling"), help="default: both")
    parser.add_argument("--rows", type=int, default=None, help="of the large model (48), and for one scripted engine (768)")
    parser.add_argument("--runs", type=int, default=3, help="of each (default: %(default)s)")
    parser.add_argument("--measure", choices=(*SYSTEMS, "scripted"), help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--replicas", type=int, default=1, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(MEASURES[arguments.measure](arguments)))
        return
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="st-") as folder:  # a short path: sockets lie in it
        if arguments.part != "scaling":
            ratios |= compare_engines(Path(folder), arguments.rows or 48, arguments.runs)
        if arguments.part != "engines":
            ratios |= compare_replicas(Path(folder), arguments.rows or 768, arguments.runs)
    print(json.dumps(ratios))


def compare_engines(folder: Path, rows: int, runs: int) -> dict[str, float]:
    """Ours over each of vLLM's, for both models."""
    models = {"": (make_model(folder / "qwen2.5-0.5b"), rows), "tiny_": (resolve(TEACHER, "."), rows * TINY_ROWS)}
    ratios: dict[str, float] = {}
    for prefix, (model, num_rows) in models.items():
        options = [f"--model={model}", f"--rows={num_rows}", f"--runs={runs}"]
        results = {system: medians(in_a_process(folder, system, options)) for system in SYSTEMS}
        for system, median in results.items():
            steady = f"{median['steady']:8.2f}" if median["steady"] else "       -"
            print(f"{model.name:14}{system:14}{steady} rows/s at steady state,{median['whole']:8.2f} over all, {median['tokens']} tokens")
        ratios |= {f"{prefix}{name}": ratio for name, ratio in against_vllm(results).items()}
    return ratios


def against_vllm(results: dict[str, Run]) -> dict[str, float]:
    """Our rate over each of the others'.

    Raises:
        SystemExit: they did not make about the same number of tokens, so the rates cannot be compared.
    """
    ours, raw, batch = (results[system] for system in SYSTEMS)
    if any(abs(other["tokens"] - ours["tokens"]) > 0.03 * ours["tokens"] for other in (raw, batch)):
        raise SystemExit(f"not the same numbers of tokens: {results}")
    return {
        "vs_async_llm": round(ours["steady"] / raw["steady"], 4),
        "vs_llm_generate": round(ours["steady"] / batch["whole"], 4),
        "whole_vs_async_llm": round(ours["whole"] / raw["whole"], 4),
        "whole_vs_llm_generate": round(ours["whole"] / batch["whole"], 4),
    }


def compare_replicas(folder: Path, rows: int, runs: int) -> dict[str, float]:
    """The rate of several scripted engines over as many times that of one."""
    rates = {}
    for replicas in REPLICAS:
        options = [f"--replicas={replicas}", f"--rows={rows * replicas}", f"--runs={runs}"]
        rates[replicas] = medians(in_a_process(folder, "scripted", options))["steady"]
        most = replicas * SCRIPTED.max_num_seqs / SCRIPTED.delay_seconds
        print(f"{replicas} scripted engines {rates[replicas]:8.1f} rows/s at steady state, at most {most:.0f}")
    return {f"scaling_{replicas}_replicas": round(rates[replicas] / replicas / rates[1], 4) for replicas in REPLICAS[1:]}


def in_a_process(folder: Path, measure: str, options: Sequence[str]) -> list[Run]:
    """What a fresh interpreter measures; Ray's files lie in the folder, so that no other Ray of this machine is touched."""
    path = os.pathsep.join([str(Path(__file__).parent), *(entry for entry in sys.path if entry)])
    environment = {**os.environ, **QUIET, "PYTHONPATH": path, "RAY_TMPDIR": str(folder)}
    command = [sys.executable, __file__, f"--measure={measure}", *options]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(f"{measure} {' '.join(options)} failed:\n{ran.stderr[-3000:]}")
    runs: list[Run] = json.loads(ran.stdout.splitlines()[-1])
    return runs


def medians(runs: Sequence[Run]) -> Run:
    """Each quantity's median, None where a run has none."""
    return {key: None if runs[0][key] is None else statistics.median(run[key] for run in runs) for key in runs[0]}


def rates(began: float, ended: Sequence[float], rows_each: int = 1) -> dict[str, float]:
    """Rows a second between the first and the last eighth of what ended, and from the beginning to the end."""
    times = sorted(ended)
    edge = max(1, len(times) // 8)
    steady = (len(times) - 2 * edge) * rows_each / (times[-1 - edge] - times[edge - 1])
    return {"steady": steady, "whole": len(times) * rows_each / (times[-1] - began)}


def measure_ours(arguments: argparse.Namespace) -> list[Run]:
    """Rollouts one after the other on a Ray of two CPUs, each with an engine of its own."""
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=256 * 2**20, logging_level=logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as root:
            return [one_rollout(Path(root), f"run-{at}", arguments.model, arguments.rows) for at in range(arguments.runs)]
    finally:
        ray.shutdown()


def one_rollout(root: Path, name: str, model: str, rows: int) -> Run:
    from supertiny.rollout.pipeline import rollout

    notes = root / f"{name}.notes"
    artifact = rollout(
        RolloutConfig(
            run_root=str(root),
            name=name,
            task=TaskConfig(path="rollout:OneCall", options={"num_prompts": rows, "notes": str(notes)}),
            teacher=model,
            engine=ENGINE.model_copy(update={"num_threads": 1}),
            group_size=1,
            layout=LayoutConfig(block_rows=4, blocks_in_flight=8),
        )
    )
    began, ended = zip(*(map(float, line.split()) for line in notes.read_text().splitlines()), strict=True)
    return {**rates(min(began), ended), "tokens": artifact.manifest.metrics["completion_tokens"]}


def measure_async_llm(arguments: argparse.Namespace) -> list[Run]:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    from supertiny.llm.vllm import engine_arguments

    async def go() -> list[Run]:
        engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model=arguments.model, **engine_arguments(ENGINE)))
        requests = token_requests(arguments.model, arguments.rows)
        try:
            await ask_all(engine, requests[:4], "warm")
            return [await ask_all(engine, requests, f"run{at}") for at in range(arguments.runs)]
        finally:
            engine.shutdown()

    return asyncio.run(go())


async def ask_all(engine: Any, requests: Sequence[tuple[Any, Any]], name: str) -> Run:
    async def ask(at: int, prompt: Any, params: Any) -> tuple[float, int]:
        number = 0
        async for output in engine.generate(prompt, params, f"{name}-{at}"):
            number = len(output.outputs[0].token_ids)
        return time.monotonic(), number

    began = time.monotonic()
    answers = await asyncio.gather(*(ask(at, *request) for at, request in enumerate(requests)))
    return {**rates(began, [ended for ended, _ in answers]), "tokens": sum(number for _, number in answers)}


def measure_llm_generate(arguments: argparse.Namespace) -> list[Run]:
    from vllm import LLM

    from supertiny.llm.vllm import engine_arguments

    llm = LLM(arguments.model, **engine_arguments(ENGINE))
    prompts, params = map(list, zip(*token_requests(arguments.model, arguments.rows), strict=True))
    llm.generate(prompts[:4], params[:4], use_tqdm=False)
    return [generate(llm, prompts, params) for _ in range(arguments.runs)]


def generate(llm: Any, prompts: list[Any], params: list[Any]) -> Run:
    began = time.monotonic()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.monotonic() - began
    return {"steady": None, "whole": len(prompts) / seconds, "tokens": sum(len(output.outputs[0].token_ids) for output in outputs)}


def token_requests(model: str, rows: int) -> list[tuple[Any, Any]]:
    """The prompts that `OneCall` asks, as token ids, and vLLM's parameters for the same completions."""
    from transformers import AutoTokenizer
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    from supertiny.llm.chat import prompt_token_ids

    tokenizer = AutoTokenizer.from_pretrained(model)
    fixed: dict[str, Any] = {"temperature": 0.0, "detokenize": False, "output_kind": RequestOutputKind.FINAL_ONLY}
    return [
        ({"prompt_token_ids": prompt_token_ids(tokenizer, messages(at), [])}, SamplingParams(max_tokens=num_tokens(at), **fixed))
        for at in range(rows)
    ]


def measure_scripted(arguments: argparse.Namespace) -> list[Run]:
    """Rollouts on a cluster of simulated nodes, one for each scripted engine."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": CPUS_OF_A_NODE - 1, "include_dashboard": False})
    for _ in range(arguments.replicas):
        cluster.add_node(num_cpus=CPUS_OF_A_NODE)
    ray.init(address=cluster.address, logging_level=logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as root:
            finish_times(Path(root), "warm", 4 * BLOCK_ROWS, arguments.replicas)  # the processes that write tables start slowly
            timed = [finish_times(Path(root), f"run-{at}", arguments.rows, arguments.replicas) for at in range(arguments.runs)]
            return [{**rates(times[0], times[1:], BLOCK_ROWS), "tokens": 0} for times in timed]
    finally:
        ray.shutdown()
        cluster.shutdown()


def finish_times(root: Path, name: str, rows: int, replicas: int) -> list[float]:
    """When a rollout of scripted engines began, and then when each of its blocks was on disk."""
    from supertiny.rollout.pipeline import rollout

    config = RolloutConfig(
        run_root=str(root),
        name=name,
        task=TaskConfig(path="rollout:OneCall", options={"num_prompts": rows}),
        scripted=SCRIPTED,
        group_size=1,
        layout=LayoutConfig(num_engines=(replicas, replicas), cpus_per_engine=CPUS_OF_A_NODE, block_rows=BLOCK_ROWS, blocks_in_flight=3),
    )
    finished: dict[str, float] = {}
    ended = Event()
    watcher = Thread(target=note_blocks, args=(root, name, finished, ended))
    began = time.monotonic()
    watcher.start()
    try:
        rollout(config)
    finally:
        ended.set()
        watcher.join()
    return [began, *finished.values()]


def note_blocks(root: Path, name: str, finished: dict[str, float], ended: Event) -> None:
    """When each block was seen to be finished."""
    while not ended.wait(0.05):
        for done in root.glob(f".{name}.*.partial/.done"):
            now = time.monotonic()
            for block in finished_names(done):
                finished.setdefault(block, now)


def make_model(folder: Path) -> Path:
    """Qwen2.5-0.5B's shape with random weights in bfloat16, and the embedded teacher's tokenizer, whose ids are fewer."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(resolve(TEACHER, "."))
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    shape = Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen2ForCausalLM(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    manifest = Manifest(kind="model", name=folder.name, key=folder.name, files=file_entries(folder))
    write_atomically(folder / MANIFEST, manifest.model_dump_json())
    return folder


MEASURES: dict[str, Callable[[argparse.Namespace], list[Run]]] = {
    "ours": measure_ours,
    "async_llm": measure_async_llm,
    "llm_generate": measure_llm_generate,
    "scripted": measure_scripted,
}


if __name__ == "__main__":
    main()
