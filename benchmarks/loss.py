"""Memory and time of the chunked distillation loss, forward and backward, against a dense one and TRL's chunked divergence.

    python benchmarks/loss.py                  # a GPU if there is one, else one thread of the CPU: some five minutes
    python benchmarks/loss.py --tokens 256     # a quick look

All in bfloat16: hidden states (T, D), an output embedding (V, D), and a teacher; the result is the loss and both gradients.

  dense  logits, float32 log-probabilities, cross-entropy and the forward KL over a cached top-k with its tail, by autograd
  fused  trl.kernels.chunked_divergence with beta 0, the forward KL over the whole vocabulary. It knows no cached top-k and takes the
         teacher's hidden states and output embedding, which it projects itself. To compare the student's side, its teacher here is
         only 64 wide, so that projecting it costs 7 % of projecting the student; a real teacher costs it several times more.
         It has no cross-entropy, which the other two compute as well.
  ours   supertiny.train.chunked: the terms of `dense`

Each measurement is a process of its own, and the three take turns. Memory is the highest since just before the forward pass, less what
was held then (the arguments) and less the output embedding's gradient: resident memory of the process on a CPU, allocated memory on a GPU.
Time on a CPU is processor time of one thread, to which other processes add little; on a GPU it is wall time. Medians are compared.

The last line is one JSON object: ours divided by the other, for each.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from supertiny.train.chunked import chunked_losses
from supertiny.train.losses import Taught
from supertiny.train.objective import Objective

VOCABULARY, KEPT, WIDTH = 151_936, 100, 896
TEACHER_WIDTH = 64
Loss = Callable[[Tensor, Tensor, int], Callable[[], Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048, help="T (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="measurements of each (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s here")
    parser.add_argument("--measure", choices=LOSSES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.tokens, torch.device(arguments.device))))
        return
    results: dict[str, list[dict[str, float]]] = {name: [] for name in LOSSES}
    for _ in range(arguments.runs):
        for name in LOSSES:
            results[name].append(in_a_process(name, arguments.tokens, arguments.device))
    medians = {name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in results.items()}
    if abs(medians["ours"]["loss"] - medians["dense"]["loss"]) > 1e-3 * medians["dense"]["loss"]:
        raise SystemExit(f"the losses differ: {medians}")
    print(f"V {VOCABULARY}, K {KEPT}, T {arguments.tokens}, D {WIDTH}, {arguments.device}; medians of {arguments.runs}")
    for name, median in medians.items():
        print(f"{name:6}{median['bytes'] / 1e6:9.0f} MB{median['seconds']:9.3f} s")
    print(json.dumps(ratios(medians)))


def ratios(medians: dict[str, dict[str, float]]) -> dict[str, float]:
    """Ours divided by each other, in memory and time."""
    pairs = [(quantity, key, other) for other in ("dense", "fused") for quantity, key in (("memory", "bytes"), ("time", "seconds"))]
    return {f"{quantity}_vs_{other}": round(medians["ours"][key] / medians[other][key], 4) for quantity, key, other in pairs}


def in_a_process(name: str, tokens: int, device: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", name, "--tokens", str(tokens), "--device", device]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result: dict[str, float] = json.loads(printed.splitlines()[-1])
    return result


def measure(name: str, tokens: int, device: torch.device) -> dict[str, float]:
    """Seconds, bytes and the loss of one forward and backward pass, after one over a few tokens to load what is loaded on first use."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    weight_VD = torch.empty(VOCABULARY, WIDTH, dtype=torch.bfloat16, device=device).normal_(std=0.02).requires_grad_()
    hidden_ND = torch.randn(tokens, WIDTH, device=device).bfloat16().requires_grad_()
    loss = LOSSES[name](hidden_ND, weight_VD, tokens)
    LOSSES[name](hidden_ND[:16].detach().requires_grad_(), weight_VD, 16)().backward()
    weight_VD.grad = None
    before, started = memory_before(device), seconds(device)
    result = loss()
    result.backward()
    taken = seconds(device) - started
    assert weight_VD.grad is not None
    held = memory_peak(device) - before - weight_VD.grad.nbytes
    return {"seconds": taken, "bytes": held, "loss": result.item()}


def taught_on(device: torch.device, tokens: int) -> Taught:
    """A teacher that keeps K tokens and 0.95 of its probability, the first of them in proportion 1, 1/2, 1/3, …"""
    random = torch.Generator().manual_seed(1)
    ids_NK = (torch.randint(VOCABULARY, (tokens, 1), generator=random) + 1009 * torch.arange(KEPT)) % VOCABULARY  # all different
    kept_K = 1 / torch.arange(1, KEPT + 1)
    logprobs_NK = (0.95 * kept_K / kept_K.sum()).log().repeat(tokens, 1)
    return Taught(ids_NK[:, 0].to(device), ids_NK.to(device), logprobs_NK.to(device))


def ours(hidden_ND: Tensor, weight_VD: Tensor, tokens: int) -> Callable[[], Tensor]:
    taught, objective = taught_on(hidden_ND.device, tokens), Objective(("cross_entropy", "forward_kl"))
    return lambda: chunked_losses(hidden_ND, weight_VD, taught, objective, (1 / tokens, 1 / tokens))[0]


def dense(hidden_ND: Tensor, weight_VD: Tensor, tokens: int) -> Callable[[], Tensor]:
    taught = taught_on(hidden_ND.device, tokens)

    def loss() -> Tensor:
        logprobs_NV = torch.log_softmax((hidden_ND @ weight_VD.T).float(), -1)
        entropy_N = -logprobs_NV.gather(-1, taught.targets_N[:, None])[:, 0]
        p_NK = taught.teacher_logprobs_NK.exp()
        p_tail_N = (1 - p_NK.sum(-1)).clamp(min=0)
        kept_N = (torch.xlogy(p_NK, p_NK) - p_NK * logprobs_NV.gather(-1, taught.teacher_ids_NK)).sum(-1)
        tail_N = logprobs_NV.scatter(-1, taught.teacher_ids_NK, float("-inf")).logsumexp(-1)
        return (entropy_N + kept_N + torch.xlogy(p_tail_N, p_tail_N) - p_tail_N * tail_N).mean()

    return loss


def fused(hidden_ND: Tensor, weight_VD: Tensor, tokens: int) -> Callable[[], Tensor]:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    teacher_ND = torch.randn(tokens, TEACHER_WIDTH, device=hidden_ND.device).bfloat16()
    teacher_VD = torch.empty(VOCABULARY, TEACHER_WIDTH, dtype=torch.bfloat16, device=hidden_ND.device).normal_(std=0.2)
    return lambda: ChunkedDivergenceFunction.apply(hidden_ND, weight_VD, None, teacher_ND, teacher_VD, None, 0.0)[0].mean()


LOSSES: dict[str, Loss] = {"dense": dense, "fused": fused, "ours": ours}


def seconds(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def memory_before(device: torch.device) -> float:
    """Bytes held now; the peak is counted from here."""
    if device.type == "cpu":
        ctypes.CDLL(None).malloc_trim(0)  # what is free already must not count as held
        Path("/proc/self/clear_refs").write_text("5")  # the kernel's mark of the highest resident memory, back to the present one
        return resident("VmRSS")
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def memory_peak(device: torch.device) -> float:
    return resident("VmHWM") if device.type == "cpu" else torch.cuda.max_memory_allocated(device)


def resident(key: str) -> float:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * float(found[1])


if __name__ == "__main__":
    main()
