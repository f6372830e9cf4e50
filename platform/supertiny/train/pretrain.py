"""Pretraining: a tokenizer and a tiny Qwen2 model from nothing, out of the examples that a task makes."""

from __future__ import annotations

import itertools
import logging
import math
import random
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from supertiny.artifacts import Artifact, make, open_artifact, resolve
from supertiny.errors import ConfigError, NotFinite
from supertiny.llm.chat import completion_token_ids, prompt_token_ids
from supertiny.tasks.base import Pretrainable, load_task
from supertiny.tracking import Tracker, check_trackers, open_trackers
from supertiny.train.induction import start_copying
from supertiny.train.pretrain_config import ModelSize, PretrainConfig
from supertiny.train.students import model_size
from supertiny.train.tokenizer import make_tokenizer

Ids = tuple[list[int], list[int]]
"""An example's prompt and answer as token ids."""
_POOLED_BATCHES = 32
log = logging.getLogger(__name__)


def pretrain(config: PretrainConfig) -> Artifact:
    """The model artifact of a config: a Hugging Face folder in bfloat16, with its tokenizer.

    Raises:
        ConfigError: the task makes no examples, a tracker is not installed, or a text for the tokenizer is none.
        MissingInput: it is not there.
        NotFinite: the loss is NaN or infinite.
    """
    check_trackers(config.trackers)
    task = load_task(config.task)
    if not isinstance(task, Pretrainable):
        raise ConfigError(f"task.path {config.task.path} has no pretraining_examples; start from a pre-trained model instead")
    tokenizer_texts(config)
    parents = {"tokenizer": open_artifact(config.tokenizer, config.run_root, "model")} if config.tokenizer else {}
    return make(config, "model", parents, lambda folder: _build(config, task, parents, folder))


def _build(config: PretrainConfig, task: Pretrainable, parents: Mapping[str, Artifact], folder: Path) -> dict[str, Any]:
    """Train, and leave the model and its tokenizer in `folder`."""
    tokenizer = AutoTokenizer.from_pretrained(parents["tokenizer"].path) if parents else _new_tokenizer(config, task)
    torch.manual_seed(config.seed)
    model = new_model(config.model, tokenizer)
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)  # a killed run begins anew
    tracker = open_trackers(config.trackers, folder)
    metrics = _train(model, _token_ids(config, task, tokenizer), config, tracker)
    tracker.close()
    torch.nn.Module.to(model, torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {**model_size(folder), **metrics}


def _new_tokenizer(config: PretrainConfig, task: Pretrainable) -> Any:
    examples = itertools.islice(task.pretraining_examples(config.role, config.seed), config.tokenizer_examples)
    conversations = ([*messages, {"role": "assistant", "content": answer}] for messages, answer in examples)
    texts = (text for conversation in conversations for message in conversation for text in (message["role"], message["content"]))
    return make_tokenizer(itertools.chain(texts, tokenizer_texts(config)), config.model.vocabulary_size)


def tokenizer_texts(config: PretrainConfig) -> list[str]:
    """The lines of a new tokenizer's further texts.

    Raises:
        MissingInput: a file is not there.
        ConfigError: it is no text in UTF-8.
    """
    lines: list[str] = []
    for uri in config.tokenizer_texts:
        path = resolve(uri, config.run_root)
        try:
            lines += path.read_text(encoding="utf-8").splitlines()
        except (IsADirectoryError, UnicodeDecodeError) as error:
            raise ConfigError(f"tokenizer_texts: {path} is no text in UTF-8: {error}") from None
    return lines


def new_model(size: ModelSize, tokenizer: Any) -> Qwen2ForCausalLM:
    """A Qwen2 model in float32 with random weights, but for the heads that copy."""
    config = Qwen2Config(
        **size.sizes(),
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="eager",  # type: ignore[call-arg]  # 1.3 times as fast as sdpa for short rows on the CPU
    )
    model: Qwen2ForCausalLM = Qwen2ForCausalLM(config)  # type: ignore[no-untyped-call]
    if size.num_layers > 1 and size.hidden_size // 64 > size.num_key_value_heads:
        start_copying(model)
    model.generation_config.update(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)  # type: ignore[no-untyped-call]
    return model


def _token_ids(config: PretrainConfig, task: Pretrainable, tokenizer: Any) -> Iterator[Ids]:
    for messages, answer in task.pretraining_examples(config.role, config.seed):
        prompt, completion = prompt_token_ids(tokenizer, messages, ()), completion_token_ids(tokenizer, answer)
        if len(prompt) + len(completion) <= config.max_tokens:
            yield prompt, completion


def _train(model: Qwen2ForCausalLM, examples: Iterator[Ids], config: PretrainConfig, tracker: Tracker) -> dict[str, float]:
    """Train in place; returns the first and last mean losses on the answers' tokens, in nats a token."""
    optimizers = new_optimizers(model, config.learning_rate)
    losses: list[float] = []
    means: list[float] = []
    started, tokens = time.monotonic(), 0
    for step, batch in enumerate(itertools.islice(_batches(examples, config.batch, config.seed), config.steps), 1):
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = learning_rate(step, config)
        losses.append(_step(model, optimizers, batch, config.prompt_loss_weight))
        tokens += sum(len(prompt) + len(answer) for prompt, answer in batch)
        if step % config.log_every_steps == 0 or step == config.steps:
            seconds = time.monotonic() - started
            means.append(sum(losses) / len(losses))
            losses.clear()
            tracker.log({"loss": means[-1], "tokens": tokens, "seconds": round(seconds, 1)}, step)
            log.info("step %d of %d: loss %.4f, %.0f tokens/s", step, config.steps, means[-1], tokens / seconds)
    return {"first_loss": means[0], "loss": means[-1], "trained_tokens": tokens}


def new_optimizers(model: Qwen2ForCausalLM, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the embedding, norms and biases.

    Muon's updates are orthogonalized and scaled to AdamW's size (Liu et al., arXiv 2502.16982), so that one learning rate fits
    both. On the assistant it came in 350 steps to the loss that AdamW alone needed 1,500 for.
    """
    matrices = [weights for name, weights in model.named_parameters() if weights.ndim == 2 and "embed_tokens" not in name]
    chosen = {id(weights) for weights in matrices}
    others = [weights for weights in model.parameters() if id(weights) not in chosen]
    muon = torch.optim.Muon(matrices, learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(others, learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)]


def _step(model: Qwen2ForCausalLM, optimizers: Sequence[torch.optim.Optimizer], batch: list[Ids], prompt_loss_weight: float) -> float:
    """One update; returns the mean loss on the answers' tokens."""
    ids_BT, weights_BT = collate(batch, prompt_loss_weight)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids_BT[:, :-1], use_cache=False).logits
    losses_BT = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), ids_BT[:, 1:], reduction="none")
    answers_BT = weights_BT == 1
    loss = (losses_BT * weights_BT).sum() / answers_BT.sum()
    if not torch.isfinite(loss):
        raise NotFinite("the pretraining loss is not finite; lower learning_rate or raise warmup_steps")
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return float(losses_BT.detach()[answers_BT].mean())


def learning_rate(step: int, config: PretrainConfig) -> float:
    """The rate of a step, counted from 1: a straight rise, then a cosine down to 0."""
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * (1 + math.cos(math.pi * done)) / 2


def collate(batch: list[Ids], prompt_loss_weight: float) -> tuple[Tensor, Tensor]:
    """A batch's ids (B, T), padded on the right where causal attention never looks, and each next token's weight (B, T - 1)."""
    longest = max(len(prompt) + len(answer) for prompt, answer in batch)
    ids_BT = torch.zeros(len(batch), longest, dtype=torch.long)
    weights_BT = torch.zeros(len(batch), longest - 1)
    for row, (prompt, answer) in enumerate(batch):
        end = len(prompt) + len(answer)
        ids_BT[row, :end] = torch.tensor(prompt + answer)
        weights_BT[row, : len(prompt) - 1] = prompt_loss_weight
        weights_BT[row, len(prompt) - 1 : end - 1] = 1
    return ids_BT, weights_BT


def _batches(examples: Iterator[Ids], batch: int, seed: int) -> Iterator[list[Ids]]:
    """Batches of examples of about one length, in random order of length."""
    rng = random.Random(seed)
    while pool := list(itertools.islice(examples, batch * _POOLED_BATCHES)):
        pool.sort(key=lambda ids: len(ids[0]) + len(ids[1]))
        cut = [pool[start : start + batch] for start in range(0, len(pool), batch)]
        rng.shuffle(cut)
        yield from cut
