"""Model folders that plain Hugging Face and vLLM load, and how far a compressed model moved from its original."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from supertiny.compress.calibration import Batch
from supertiny.compress.logits import logits_by_part
from supertiny.errors import NotFinite

COPIED_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)
"""Files that compression leaves as they are; a folder has those that its model came with."""


def copy_unchanged(source: Path, folder: Path) -> None:
    """Give a compressed model its original's tokenizer, chat template and generation settings, byte for byte.

    Saving a loaded tokenizer writes other bytes, and stages compare tokenizers by the hash of `tokenizer.json`.
    """
    for name in COPIED_FILES:
        (folder / name).unlink(missing_ok=True)
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)


def weight_bytes(folder: Path) -> int:
    """Size of all weight files."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


@torch.inference_mode()
def divergence(original: Path, compressed: Path, batches: Sequence[Batch], kept_ids: Sequence[int] | None = None) -> dict[str, float]:
    """How far a compressed model's next-token distributions lie from its original's, both as Hugging Face loads their files.

    Args:
        batches: rows in the original's token ids.
        kept_ids: where the vocabulary was cut, the original's ids by the new ones; the original's distribution is taken over these alone.

    Returns:
        `kl_nats`: mean over all positions of KL(original ‖ compressed), nats a token; `greedy_agreement`: fraction of positions where
        both find the same token likeliest; with `kept_ids` also `dropped_mass`: the original's mean probability of all dropped tokens.

    Raises:
        NotFinite: the compressed model gives NaN or infinite logits.
    """
    before, after = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (original, compressed))
    kl_sum, same, tokens, kept_sum = 0.0, 0, 0, 0.0
    new_ids = {number: place for place, number in enumerate(kept_ids)} if kept_ids is not None else None
    for batch in batches:
        renumbered = batch if new_ids is None else [[new_ids[number] for number in row] for row in batch]
        for before_NV, after_NV in zip(logits_by_part(before, batch), logits_by_part(after, renumbered), strict=True):
            p_NV, q_NV = before_NV.log_softmax(-1), after_NV.log_softmax(-1)
            if kept_ids is not None:
                kept_NV = p_NV[:, list(kept_ids)]
                kept_sum += kept_NV.exp().sum().item()
                p_NV = kept_NV.log_softmax(-1)
            kl_sum += (p_NV.exp() * (p_NV - q_NV)).sum().item()
            same += int((p_NV.argmax(-1) == q_NV.argmax(-1)).sum())
            tokens += len(p_NV)
    if not torch.isfinite(torch.tensor(kl_sum)):
        raise NotFinite(f"{compressed}: its logits are not finite; was {original} trained to the end?")
    moved = {"kl_nats": kl_sum / tokens, "greedy_agreement": same / tokens}
    return moved if kept_ids is None else {**moved, "dropped_mass": max(1 - kept_sum / tokens, 0.0)}
