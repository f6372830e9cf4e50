"""Tokens a second of Qwen2.5-0.5B's shape cut to 0.40B along every axis, against the uncut one, in vLLM on this machine.

    python benchmarks/compress.py                                          # on two cores some 50 minutes
    python benchmarks/compress.py --models vocab+depth --folder /tmp/cuts  # one cut; what lies in the folder is not made again

Random weights in bfloat16, so that speed and bytes are real and quality means nothing; a real checkpoint takes the same path:
`supertiny.compress.solver` finds the shape, `prune.write_pruned` cuts by importance on calibration rows, `quantize.write_quantized` lowers
the bits with LLM Compressor. The models: `half_billion` (494.0M, uncut), a cut of it along each axis and mix to 0.40B +- 1.5 %, and some of
them in other formats. `--models` names others, with `:w8a8`, `:awq_w4a16` or `:gptq_w4a16` behind a cut for a format.
Calibration is 4,096 tokens, 64 rows of 64 unless `--rows` takes more, and each step ends with what the stages measure too: how far the
distributions moved.

Every step has a process of its own, whose seconds and highest resident memory are printed. Other guests of a machine can halve its speed
from one minute to the next, so every model is measured beside the uncut one: both engines are up, and answer the same prompt one after the
other, each first in every second turn, 32 tokens of output. A pair of answers gives a ratio; medians and middle halves of the ratios are
printed as the table of docs/pareto.md, where a model is beaten by one that is no larger, no slower with any number of requests, and better
in one of these. The last line is one JSON: the cut by depth, the best along several axes, and the best of all, over the uncut one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from supertiny.artifacts import resolve
from supertiny.compress.config import AXES, PruneConfig, QuantizeConfig
from supertiny.compress.pareto import Row, dominated_by
from supertiny.compress.shapes import Shape, read_shape
from supertiny.compress.solver import limits_of, solve, target_of
from supertiny.llm.config import EngineConfig
from supertiny.records import Prompt

TEACHER = "package://supertiny.tasks.assistant/models/teacher"
"""Its tokenizer writes and reads the prompts: 1,024 tokens; the other rows of the embedding have none."""
HALF_BILLION = "half_billion"
CUTS = {axis: {"axis": axis, "target_parameters": 405_000_000, "tolerance_fraction": 0.03} for axis in AXES}
FORMATS = ("w8a8", "awq_w4a16", "gptq_w4a16")
DEFAULT_MODELS = (HALF_BILLION, *AXES, "vocab:w8a8", "depth:w8a8", "vocab+depth:w8a8", "depth+width:w8a8", "width:awq_w4a16")
COLUMNS = ("model", "vocabulary x layers x width", "M parameters", "MB", "p50, ms a token at 1", "times the uncut (middle half)")
NUM_PROMPTS, MAX_TOKENS = 6, 32
ENGINE = EngineConfig(max_model_len=256, max_num_seqs=32, kv_cache_gib=0.5)
QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
Result = dict[str, Any]
Measured = list[tuple[float, float]]
"""Seconds a token of the uncut model and of another one, measured one right after the other."""
Pairs = dict[int, Measured]
"""By requests in flight."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(DEFAULT_MODELS), help="default: %(default)s")
    parser.add_argument(
        "--runs", type=int, default=3, help="pairs of measurements of each, and as many of every prompt alone (default: %(default)s)"
    )
    parser.add_argument("--folder", help="where the models are made and kept; default: a temporary one")
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[8, 32], help="requests in flight, besides one alone (default: %(default)s)"
    )
    parser.add_argument("--rows", type=int, default=64, help="calibration rows of 64 tokens of cuts and formats (default: %(default)s)")
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        step, name = arguments.step
        takes = {"weights": (), "speed": ("batches", "runs")}.get(step, ("rows",))
        print(json.dumps(STEPS[step](Path(arguments.folder), name, **{each: getattr(arguments, each) for each in takes})))
        return
    if unknown := [name for name in arguments.models if not is_model(name)]:
        cuts, forms = ", ".join(AXES), ", ".join(FORMATS)
        parser.error(
            f"--models {unknown[0]}: expected {HALF_BILLION} or a cut ({cuts}), with a colon and a format ({forms}) where it has one"
        )
    if set(arguments.models) <= {HALF_BILLION}:
        parser.error("--models: name a cut, to be measured beside the uncut model")
    with tempfile.TemporaryDirectory() as temporary:
        compare(
            Path(arguments.folder or temporary), [HALF_BILLION, *(name for name in arguments.models if name != HALF_BILLION)], arguments
        )


def is_model(name: str) -> bool:
    """Whether it is the uncut model, a cut, or one of them and a format."""
    cut, colon, form = name.partition(":")
    return cut in (HALF_BILLION, *AXES) and (form in FORMATS if colon else True)


def compare(folder: Path, models: list[str], arguments: argparse.Namespace) -> None:
    """Make what is missing, measure each beside the uncut one, and print."""
    for name in models:
        make(folder, name, arguments.rows)
    pairs: dict[str, Pairs] = {}
    for name in models:
        if name != HALF_BILLION:
            pairs[name] = measure(folder, name, arguments)
            print(f"speed {name}: {describe(pairs[name][1])} times the uncut one's, one request at a time", flush=True)
    print(table(folder, pairs))
    print(json.dumps(ratios({name: ratio(each[1]) for name, each in pairs.items()})))


def measure(folder: Path, name: str, arguments: argparse.Namespace) -> Pairs:
    batches, runs = [str(batch) for batch in arguments.batches], str(arguments.runs)
    found = in_a_process(folder, "speed", name, "--batches", *batches, "--runs", runs)
    return {int(batch): each for batch, each in found.items()}


def ratio(pairs: Measured) -> float:
    """How many times as fast as the uncut model."""
    return statistics.median(uncut / ours for uncut, ours in pairs)


def describe(pairs: Measured) -> str:
    """The ratio's median and middle half."""
    low, _, high = statistics.quantiles((uncut / ours for uncut, ours in pairs), n=4)
    return f"{ratio(pairs):.2f} ({low:.2f} to {high:.2f})"


def ratios(over: dict[str, float]) -> dict[str, float]:
    """Tokens a second at batch 1 over those of the uncut model in bfloat16."""
    mixes = {name: rate for name, rate in over.items() if "+" in name}
    named = {"depth_vs_half_billion": {"depth": over.get("depth")}, "best_vs_half_billion": mixes, "best_of_all_vs_half_billion": over}
    return {key: round(max(rates), 4) for key, each in named.items() if (rates := [rate for rate in each.values() if rate is not None])}


def row(folder: Path, name: str, over: dict[int, float]) -> Row:
    """A model's size, and its speeds in those of the uncut one; all have one quality."""
    size = sum(path.stat().st_size for path in (folder / name).glob("*.safetensors"))
    quality = {"quality": 0.0, "quality_low": 0.0, "quality_high": 0.0}
    shape = {"format": name.partition(":")[2] or "bfloat16", "parameters": shape_of(name).num_parameters}
    return Row(name=name, bytes=size, seconds_per_token=1 / over[1], tokens_per_second=over, **shape, **quality)


def table(folder: Path, pairs: dict[str, Pairs]) -> str:
    """In Markdown, the uncut model first: its speeds are of all pairs."""
    uncut = {batch: [(of, of) for each in pairs.values() for of, _ in each[batch]] for batch in next(iter(pairs.values()))}
    measured = {HALF_BILLION: uncut, **pairs}
    rows = {name: row(folder, name, {batch: ratio(each) for batch, each in found.items()}) for name, found in measured.items()}
    heads = [f"{what} at {batch}" for batch in uncut if batch > 1 for what in ("tokens/s", "of the uncut")]
    cells = [[*COLUMNS, *heads, "beaten by"]]
    for name, found in measured.items():
        shape, each = shape_of(name), rows[name]
        sizes = f"{shape.vocab_size:,} x {shape.num_hidden_layers} x {shape.intermediate_size:,}"
        seconds = {batch: statistics.median(ours for _, ours in of) for batch, of in found.items()}
        rates = [text for batch, of in found.items() if batch > 1 for text in (f"{1 / seconds[batch]:.0f}", f"{ratio(of):.2f}")]
        alone = [f"{1000 * seconds[1]:.1f}", describe(found[1]) if name != HALF_BILLION else "1.00", *rates]
        cells.append(
            [name, sizes, f"{each.parameters / 1e6:.1f}", f"{each.bytes / 1e6:.1f}", *alone, dominated_by(each, [*rows.values()]) or ""]
        )
    first, *others = (f"| {' | '.join(line)} |" for line in cells)
    return "\n".join([first, "|" + "---|" * len(cells[0]), *others])


def shape_of(name: str) -> Shape:
    """The shape of a model by its name; a format changes none."""
    half = read_shape(half_billion())
    cut = name.partition(":")[0]
    if cut == HALF_BILLION:
        return half
    config = PruneConfig.model_validate(CUTS[cut])
    return solve(half, config.axis, target_of(config, half), limits_of(config, 1024))


def half_billion() -> dict[str, Any]:
    """Qwen2.5-0.5B's config, of 494.0M parameters."""
    sizes = {"vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24}
    heads = {"num_attention_heads": 14, "num_key_value_heads": 2}
    return {**sizes, **heads, "model_type": "qwen2", "max_position_embeddings": 32_768, "tie_word_embeddings": True}


def make(folder: Path, name: str, rows: int) -> None:
    """Make a model and what it is made from, where they are not there; a step that is killed leaves a folder of another name."""
    if (folder / name).exists():
        return
    cut, _, form = name.partition(":")
    if form:
        make(folder, cut, rows)
    elif name != HALF_BILLION:
        make(folder, HALF_BILLION, rows)
    step = "quantize" if form else "weights" if name == HALF_BILLION else "cut"
    shutil.rmtree(unfinished(folder, name), ignore_errors=True)
    made = in_a_process(folder, step, name, "--rows", str(rows))
    unfinished(folder, name).rename(folder / name)
    print(f"{step} {name}: {made['seconds']:.0f} s, at most {made['bytes'] / 1e9:.1f} GB", flush=True)


def unfinished(folder: Path, name: str) -> Path:
    """Where a step writes its model."""
    return folder / f"{name}.partial"


def in_a_process(folder: Path, step: str, name: str, *more: str) -> Result:
    command = [sys.executable, __file__, "--folder", str(folder), "--step", step, name, *more]
    ran = subprocess.run(command, env={**os.environ, **QUIET}, capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(f"{step} {name} failed:\n{ran.stderr[-3000:]}")
    result: Result = json.loads(ran.stdout.splitlines()[-1])
    return result


def weights(folder: Path, name: str) -> Result:
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(resolve(TEACHER, "."))
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    Qwen2ForCausalLM(Qwen2Config(**{**half_billion(), **ids})).save_pretrained(unfinished(folder, name))
    tokenizer.save_pretrained(unfinished(folder, name))
    return taken()


def cut(folder: Path, name: str, rows: int) -> Result:
    from supertiny.compress.calibration import equal_length_batches
    from supertiny.compress.export import divergence
    from supertiny.compress.prune import Cut, write_pruned
    from supertiny.compress.vocabulary import choose_ids, read_vocabulary, required_ids

    shape, kept = shape_of(name), None
    if shape.vocab_size < half_billion()["vocab_size"]:
        vocabulary = read_vocabulary(folder / HALF_BILLION)
        required = required_ids(vocabulary, [number for row in token_rows(rows) for number in row])
        kept = choose_ids(vocabulary, required, shape.vocab_size, half_billion()["vocab_size"])
    batches = equal_length_batches(token_rows(rows))
    write_pruned(folder / HALF_BILLION, unfinished(folder, name), Cut(shape, kept_ids=kept), batches)
    divergence(folder / HALF_BILLION, unfinished(folder, name), batches, kept)
    return taken()


def quantized(folder: Path, name: str, rows: int) -> Result:
    from supertiny.compress.calibration import equal_length_batches
    from supertiny.compress.export import divergence
    from supertiny.compress.quantize import recipe, write_quantized

    original, form = name.split(":")
    config = QuantizeConfig.model_validate({"student": original, "format": form})
    batches = equal_length_batches(token_rows(rows))
    write_quantized(folder / original, unfinished(folder, name), recipe(config), batches)
    divergence(folder / original, unfinished(folder, name), batches)
    return taken()


def speed(folder: Path, name: str, batches: list[int], runs: int) -> Pairs:
    """Both engines side by side in this process."""
    from supertiny.llm.vllm import VllmLlm

    llms = [VllmLlm(folder / each, ENGINE) for each in (HALF_BILLION, name)]
    try:
        return asyncio.run(in_turns(llms, batches, runs))
    finally:
        for llm in llms:
            llm.close()


async def in_turns(llms: list[Any], batches: list[int], runs: int) -> Pairs:
    """Seconds a token of both, by requests in flight."""
    from supertiny.compress.speed import fill, time_answers, warm_up

    texts = [f"set a timer for {at + 5} minutes" for at in range(NUM_PROMPTS)]
    prompts = [Prompt(id=text, messages=[{"role": "user", "content": text}]) for text in texts]
    for llm in llms:
        await warm_up(llm, prompts, max(batches, default=1))
    turns = [(1, [prompt]) for prompt in prompts] + [(batch, fill(prompts, batch)) for batch in batches]
    pairs: Pairs = {batch: [] for batch in (1, *batches)}
    for run in range(runs):
        for turn, (batch, asked) in enumerate(turns):
            seconds = [0.0, 0.0]
            for at in (0, 1) if (run + turn) % 2 else (1, 0):
                tokens, taken = await time_answers(llms[at], asked, batch, MAX_TOKENS)
                seconds[at] = taken / tokens
            pairs[batch].append((seconds[0], seconds[1]))
    return pairs


def token_rows(rows: int) -> list[list[int]]:
    """Calibration rows of 64 tokens that the tokenizer has, whose ids are the same after every cut."""
    draw = random.Random(0)
    return [[draw.randrange(1024) for _ in range(64)] for _ in range(rows)]


def taken() -> Result:
    """Seconds of this process so far, and its highest resident memory."""
    return {"seconds": time.monotonic() - STARTED, "bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


STARTED = time.monotonic()
STEPS = {"weights": weights, "cut": cut, "quantize": quantized, "speed": speed}


if __name__ == "__main__":
    main()
