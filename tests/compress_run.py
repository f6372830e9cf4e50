"""A run folder with a random tiny student and a few rollouts, for the tests of pruning and quantizing."""

from __future__ import annotations

import random
from itertools import product
from pathlib import Path
from string import ascii_uppercase

import torch
from tiny_rollouts import confident_teacher
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from supertiny.artifacts import make
from supertiny.config import StageConfig
from supertiny.llm.chat import completion_token_ids
from supertiny.records import Completion, Prompt, Rollout, Verdict
from supertiny.rollout_table import write_rollouts

SENTENCES = ["dim the lamp in the hall", "play some jazz", "what is the weather", "wake me at seven", "stop the music"]


def tiny_student(num_layers: int = 4, vocab_size: int = 384, hidden_size: int = 128) -> Qwen2ForCausalLM:
    """A float32 model of widths that 128 divides, surer of its next token than a usual random one."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=256,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 64,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        initializer_range=0.1,
        eos_token_id=257,
    )
    return Qwen2ForCausalLM(config).eval()


def save_byte_tokenizer(folder: Path, num_pairs: int = 0) -> None:
    """A tokenizer of one token a byte and, before them, some pairs of capitals, which no sentence has: dropping one moves all others."""
    pairs = list(product(ascii_uppercase, repeat=2))[:num_pairs]
    tokens = [*map("".join, pairs), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=pairs))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    template = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}<|im_start|>"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", chat_template=template).save_pretrained(folder)


def some_rollouts(number: int) -> list[Rollout]:
    """Accepted rollouts of as many prompts."""
    chosen = random.Random(0)
    return [
        Rollout(
            rollout_id=f"p{index}/0",
            index=0,
            prompt=Prompt(id=f"p{index}", messages=[{"role": "user", "content": chosen.choice(SENTENCES)}]),
            tools=[],
            completion=Completion(text=chosen.choice(SENTENCES)),
            verdict=Verdict(accepted=True, score=1),
            seconds=0,
        )
        for index in range(number)
    ]


def taught(rollouts: list[Rollout], student: Path, num_rows: int) -> list[Rollout]:
    """The same with token ids and a teacher's top-k, of which some lie on rows that have no token; every fourth has neither."""
    tokenizer, rows = AutoTokenizer.from_pretrained(student), []
    for at, rollout in enumerate(rollouts):
        ids = completion_token_ids(tokenizer, rollout.completion.text)
        completion = rollout.completion.model_copy(update={"token_ids": ids, "top_k": confident_teacher(ids, num_rows)})
        rows.append(rollout.model_copy(update={"completion": completion}) if at % 4 else rollout)
    return rows


def make_run(root: Path, student: str, model: Qwen2ForCausalLM, num_pairs: int = 0) -> None:
    """Publish a student of that name and `rollouts` under `root`; `num_pairs` as of `save_byte_tokenizer`."""

    def save_student(folder: Path) -> dict:
        model.config.eos_token_id = model.generation_config.eos_token_id = num_pairs + 257
        model.save_pretrained(folder)
        save_byte_tokenizer(folder, num_pairs)
        return {}

    def save_rollouts(folder: Path) -> dict:
        write_rollouts(folder / "rollouts.parquet", taught(some_rollouts(40), root / student, model.config.vocab_size))
        return {}

    make(StageConfig(name=student, run_root=str(root)), "model", {}, save_student)
    make(StageConfig(name="rollouts", run_root=str(root)), "rollouts", {}, save_rollouts)
