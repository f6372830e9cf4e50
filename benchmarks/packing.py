"""Useful tokens a second of a training step on rows as long as SNIPS's: packed, against padded and against TRL's own packing.

    python benchmarks/packing.py               # one thread of the CPU: some four minutes
    python benchmarks/packing.py --rows 256 --runs 1    # a quick look

A student of the demo's shape (3.4M parameters, vocabulary 1,024) in bfloat16 learns rows of random tokens with cross-entropy on their
second half; a step is forward, backward, a clipped gradient and AdamW. Lengths are log-normal with mean 45 tokens and a deviation of 0.26
in the logarithm, as those of SNIPS's prompts with their calls; the longest of 32 is then 1.65 times the mean.

  padded  32 rows a step, each in a line as long as the longest of the 32
  ours    32 rows a step in shared lines of at most --line tokens (supertiny.train.batching.collate, as `line_tokens` in a config)
  trl     trl.SFTTrainer with packing, its default strategy ("bfd"), lines of at most --trl-line tokens, as many lines a step as 32 rows
          fill, one in the model at a time: TRL joins the lines of a micro batch into one, whose attention costs more the longer it is

All have the same attention (eager), optimizer and type. Each packing has the length of line that was its fastest here. Useful are the
tokens of rows, not padding. Each measurement is a process of its own, and the three take turns; a pass over the rows comes before the one
that is timed. Time is processor time of one thread, to which other processes add little. Medians are compared.

The last line is one JSON object: ours divided by the other, for each.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from supertiny.train.batching import Rows, collate
from supertiny.train.objective import Objective
from supertiny.train.packing import PackedRows
from supertiny.train.pretrain import new_model
from supertiny.train.pretrain_config import ModelSize
from supertiny.train.student_loss import StudentLoss
from supertiny.train.tokenizer import make_tokenizer

MEAN_TOKENS, LOG_DEVIATION = 45, 0.26
ROWS_A_STEP = 32
LEARNING_RATE = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1024, help="rows of a pass (default: %(default)s)")
    parser.add_argument("--line", type=int, default=96, help="most tokens of a line of ours (default: %(default)s)")
    parser.add_argument("--trl-line", type=int, default=256, help="most tokens of a line of TRL's (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="measurements of each (default: %(default)s)")
    parser.add_argument("--measure", choices=MEASURED, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    lines = {"padded": 0, "ours": arguments.line, "trl": arguments.trl_line}
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.rows, lines[arguments.measure])))
        return
    results: dict[str, list[float]] = {name: [] for name in MEASURED}
    for _ in range(arguments.runs):
        for name in MEASURED:
            results[name].append(
                in_a_process(name, ["--rows", str(arguments.rows), *(f"--{key}={lines[of]}" for key, of in LINES.items())])
            )
    medians = {name: statistics.median(runs) for name, runs in results.items()}
    print(f"{arguments.rows} rows of {MEAN_TOKENS} tokens, lines of {lines['ours']} and {lines['trl']}; medians of {arguments.runs}")
    for name, median in medians.items():
        print(f"{name:8}{median:9.0f} useful tokens/s")
    ratios = {"vs_padded": medians["ours"] / medians["padded"], "vs_trl_packing": medians["ours"] / medians["trl"]}
    print(json.dumps({name: round(ratio, 4) for name, ratio in ratios.items()}))


def in_a_process(name: str, settings: list[str]) -> float:
    printed = subprocess.run([sys.executable, __file__, "--measure", name, *settings], check=True, capture_output=True, text=True).stdout
    return float(json.loads(printed.splitlines()[-1]))


def measure(name: str, rows: int, line: int) -> float:
    """Useful tokens a second of the second pass."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    lengths = np.random.default_rng(0).lognormal(math.log(MEAN_TOKENS) - LOG_DEVIATION**2 / 2, LOG_DEVIATION, rows).round().astype(np.int64)
    return float(lengths.sum() / MEASURED[name](lengths, line))


def padded(lengths: Rows, line: int) -> float:
    return by_steps(lengths, None)


def ours(lengths: Rows, line: int) -> float:
    return by_steps(lengths, line)


def by_steps(lengths: Rows, line_tokens: int | None) -> float:
    """Seconds of the second pass."""
    model, _ = student()
    loss = StudentLoss(model, Objective(("cross_entropy",)))
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    packed = packed_rows(lengths)
    for started in (time.process_time() for _ in range(2)):
        for rows in steps(len(lengths)):
            batch = collate(packed, rows, line_tokens)
            loss(batch=batch, scales=[1 / len(batch.predictors_N)])[0].backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        seconds = time.process_time() - started
    return seconds


def trl(lengths: Rows, line: int) -> float:
    """Seconds of the second pass."""
    from datasets import Dataset, disable_progress_bars
    from trl import SFTConfig, SFTTrainer

    warnings.filterwarnings("ignore")
    disable_progress_bars()
    model, tokenizer = student()
    rows = [tokens.tolist() for tokens in np.split(packed_rows(lengths).tokens_L, np.cumsum(lengths)[:-1])]
    masks = [[0] * (len(row) // 2) + [1] * (len(row) - len(row) // 2) for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            folder, packing=True, max_length=line, per_device_train_batch_size=1,
            gradient_accumulation_steps=math.ceil(ROWS_A_STEP * MEAN_TOKENS / line), num_train_epochs=2, learning_rate=LEARNING_RATE,
            optim="adamw_torch", max_grad_norm=1.0, bf16=False, use_cpu=True, gradient_checkpointing=False, completion_only_loss=True,
            logging_strategy="no", save_strategy="no", report_to=[], disable_tqdm=True,
        )  # fmt: skip
        data = Dataset.from_dict({"input_ids": rows, "completion_mask": masks})
        clock = passes_clock()
        SFTTrainer(model=model, args=settings, train_dataset=data, processing_class=tokenizer, callbacks=[clock]).train()
    return float(clock.seconds)


def passes_clock() -> Any:
    """A trainer's callback whose `seconds` are those of the last pass."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        started = seconds = 0.0

        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.process_time()

        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            self.seconds = time.process_time() - self.started

    return Clock()


def student() -> tuple[Any, Any]:
    """A new model in bfloat16, and a tokenizer that only lends its special tokens."""
    tokenizer = make_tokenizer(["turn on the light in the kitchen"], 384)
    return torch.nn.Module.to(new_model(ModelSize(), tokenizer), torch.bfloat16).train(), tokenizer


def packed_rows(lengths: Rows) -> PackedRows:
    """Rows of random tokens, without a teacher."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return PackedRows(
        rollout_ids=[str(row) for row in range(len(lengths))],
        tokens_L=np.random.default_rng(1).integers(1024, size=starts[-1]).astype(np.int32),
        row_starts_R=starts,
        prompt_lengths_R=lengths // 2,
        top_k_ids_MK=np.zeros((0, 0), np.int32),
        top_k_logprobs_MK=np.zeros((0, 0), np.float32),
        top_k_starts_R=np.zeros(len(lengths) + 1, np.int64),
    )


def steps(num_rows: int) -> Iterator[Rows]:
    """The rows of each step of a pass, in random order."""
    order = np.random.default_rng(2).permutation(num_rows)
    return (order[start : start + ROWS_A_STEP] for start in range(0, num_rows, ROWS_A_STEP))


LINES = {"line": "ours", "trl-line": "trl"}
MEASURED: dict[str, Callable[[Rows, int], float]] = {"padded": padded, "ours": ours, "trl": trl}


if __name__ == "__main__":
    main()
