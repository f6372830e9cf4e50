"""Which rows make up which step: a function of the seed alone, so that any number of workers and any restart agree.

A batch is drawn at random and then dealt out by length, so that a micro batch has little padding while no batch is all short rows
(those are the out-of-scope ones, and steps on them alone throw the student back and forth).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from supertiny.train.losses import Taught
from supertiny.train.packing import PackedRows

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class MicroBatch:
    """Rows in B lines of T tokens, with N completion tokens to predict; what is left of a line is padding, after its last row."""

    tokens_BT: Tensor
    positions_BT: Tensor
    """Counted from 0 within each row: a decoder that is given no attention mask takes from them where a row begins, and lets no token
    see one of another row or a later one."""
    predictors_N: Tensor
    """Index into the flattened (B * T,) positions of the token before each completion token: where it is predicted."""
    taught: Taught
    """What is to be predicted there."""

    def to(self, device: torch.device | str) -> MicroBatch:
        """The same on a device."""
        return MicroBatch(self.tokens_BT.to(device), self.positions_BT.to(device), self.predictors_N.to(device), self.taught.to(device))


def num_steps(num_rows: int, batch: int, epochs: float) -> int:
    """Steps in which every row is seen `epochs` times, at least one."""
    return max(1, round(epochs * num_rows / batch))


def batches(lengths: Rows, batch: int, seed: int, first_step: int, last_step: int) -> Iterator[Rows]:
    """The rows of steps `first_step` to `last_step` (the latter not included), counted from 0; the short rows of a batch first.

    The rows come as an endless stream of passes, each in its own random order; a batch is cut from it without regard to where
    a pass ends, so no row is left out at the end of one.
    """
    for step in range(first_step, last_step):
        positions = np.arange(step * batch, (step + 1) * batch)
        rows = np.array([_pass_order(len(lengths), seed, int(p // len(lengths)))[p % len(lengths)] for p in positions])
        yield rows[np.argsort(lengths[rows], kind="stable")]


def share(rows: Rows, worker: int, num_workers: int, micro_batch: int) -> list[Rows]:
    """A worker's micro batches of a batch: its rows are dealt out in turn, so that the workers get like lengths."""
    own = rows[worker::num_workers]
    return [own[start : start + micro_batch] for start in range(0, len(own), micro_batch)]


def lay_out(lengths: Rows, line_tokens: int | None) -> tuple[Rows, Rows]:
    """The line of each row and where in it the row begins: rows end to end, or a line for each.

    Args:
        line_tokens: most tokens of a line, or as many as the longest row has if those are more. There are as few lines as longest
            first, each row into the line that is filled least, gets along with (LPT scheduling); so they are of about one length.
            None gives each row its own.
    """
    lines, starts = np.arange(len(lengths)), np.zeros(len(lengths), np.int64)
    if line_tokens is None:
        return lines, starts
    most = max(line_tokens, int(lengths.max()))
    filled = np.full(math.ceil(lengths.sum() / most) - 1, most + 1)
    while not len(filled) or filled.max() > most:
        filled = np.zeros(len(filled) + 1, np.int64)
        for row in np.argsort(-lengths, kind="stable"):
            lines[row] = filled.argmin()
            starts[row] = filled[lines[row]]
            filled[lines[row]] += lengths[row]
    return lines, starts


def collate(packed: PackedRows, rows: Rows, line_tokens: int | None = None) -> MicroBatch:
    """The tensors of some rows, laid out as by `lay_out`."""
    lines, starts = lay_out(packed.lengths[rows], line_tokens)
    width = int((starts + packed.lengths[rows]).max())
    tokens_BT = np.zeros((lines.max() + 1, width), np.int64)
    positions_BT = np.tile(np.arange(width), (len(tokens_BT), 1))
    predictors, targets, ids, logprobs = [], [], [], []
    for row, line, start in zip(rows, lines, starts, strict=True):
        tokens = packed.tokens_L[packed.row_starts_R[row] : packed.row_starts_R[row + 1]]
        tokens_BT[line, start : start + len(tokens)] = tokens
        positions_BT[line, start : start + len(tokens)] = np.arange(len(tokens))
        prompt_length = int(packed.prompt_lengths_R[row])
        predictors.append(line * width + start + np.arange(prompt_length - 1, len(tokens) - 1))
        targets.append(tokens[prompt_length:])
        kept = slice(packed.top_k_starts_R[row], packed.top_k_starts_R[row + 1])
        ids.append(_or_nothing(packed.top_k_ids_MK[kept], len(targets[-1]), 0))
        logprobs.append(_or_nothing(packed.top_k_logprobs_MK[kept], len(targets[-1]), -np.inf))
    return MicroBatch(
        tokens_BT=torch.from_numpy(tokens_BT),
        positions_BT=torch.from_numpy(positions_BT),
        predictors_N=torch.from_numpy(np.concatenate(predictors)),
        taught=Taught(
            targets_N=torch.from_numpy(np.concatenate(targets).astype(np.int64)),
            teacher_ids_NK=torch.from_numpy(np.concatenate(ids).astype(np.int64)),
            teacher_logprobs_NK=torch.from_numpy(np.concatenate(logprobs)),
        ),
    )


def _or_nothing(top_k_MK: NDArray[Any], num_tokens: int, fill: float) -> NDArray[Any]:
    """A row's top-k, or as many positions of `fill` where it has none."""
    return top_k_MK if len(top_k_MK) else np.full((num_tokens, top_k_MK.shape[1]), fill, top_k_MK.dtype)


@lru_cache(maxsize=2)
def _pass_order(num_rows: int, seed: int, number: int) -> Rows:
    return np.random.default_rng((seed, number)).permutation(num_rows)
