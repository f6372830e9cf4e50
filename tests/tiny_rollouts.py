"""Gold rollouts of the embedded task, for tests of training: no teacher has to run for them."""

from __future__ import annotations

import random
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from tiny_model import write_manifest

from supertiny.artifacts import MANIFEST, Manifest, file_entries, write_atomically
from supertiny.llm.chat import completion_token_ids
from supertiny.records import Completion, Prompt, Rollout, TopK, Verdict
from supertiny.tasks.assistant.task import AssistantTask
from supertiny.tasks.calls import render

KEPT = 4


@cache
def assistant_tokenizer() -> Any:
    """A small tokenizer for the embedded task."""
    from supertiny.train.tokenizer import make_tokenizer

    examples = islice(AssistantTask().pretraining_examples("base", 0), 800)
    return make_tokenizer((text for messages, answer in examples for text in (messages[-1]["content"], answer)), 512)


def make_student(folder: Path, name: str = "base") -> Path:
    """A model artifact of 0.2M random parameters that speaks the embedded task's tokens."""
    import torch

    from supertiny.train.pretrain import new_model
    from supertiny.train.pretrain_config import ModelSize

    path = folder / name
    path.mkdir(parents=True)
    tokenizer = assistant_tokenizer()
    torch.manual_seed(0)
    size = ModelSize(vocabulary_size=512, hidden_size=128, feed_forward_size=256, num_layers=2, num_key_value_heads=1)
    torch.nn.Module.to(new_model(size, tokenizer), torch.bfloat16).save_pretrained(path)
    tokenizer.save_pretrained(path)
    write_manifest(path)
    return path


def gold_rollouts(tokenizer: Any, num_prompts: int, group_size: int = 1) -> list[Rollout]:
    """Rollouts that give each prompt's reference; every fourth prompt's have no teacher log-probabilities."""
    task = AssistantTask(train_prompts=num_prompts)
    rows = []
    for at, prompt in enumerate(task.prompts("train")):
        completion = _completion(tokenizer, prompt, with_teacher=at % 4 != 0)
        for index in range(group_size):
            verdict = Verdict(accepted=True, score=1)
            name = f"{prompt.id}/{index}"
            rows.append(
                Rollout(rollout_id=name, index=index, prompt=prompt, tools=task.tools, completion=completion, verdict=verdict, seconds=0.1)
            )
    return rows


def publish_rollouts(folder: Path, rollouts: list[Rollout], name: str = "rollouts") -> Path:
    """A `rollouts` artifact in `folder/name`."""
    from supertiny.rollout_table import REJECTED, write_rollouts

    path = folder / name
    path.mkdir(parents=True)
    write_rollouts(path / "rollouts.parquet", rollouts)
    write_rollouts(path / REJECTED, [])
    write_atomically(path / MANIFEST, Manifest(kind="rollouts", name=name, key=name, files=file_entries(path)).model_dump_json())
    return path


def confident_teacher(ids: list[int], vocabulary_size: int) -> TopK:
    """0.9 on the token that follows, 0.02 on each of three others, drawn from the vocabulary."""
    others = [random.Random(at).sample([token for token in range(vocabulary_size) if token != ids[at]], KEPT - 1) for at in range(len(ids))]
    logprobs = [-0.10536052, *[-3.912023] * (KEPT - 1)]
    return TopK(ids=[[token, *rest] for token, rest in zip(ids, others, strict=True)], logprobs=[logprobs] * len(ids))


def _completion(tokenizer: Any, prompt: Prompt, with_teacher: bool) -> Completion:
    text = render(prompt.reference) if prompt.reference else "I can't do that."
    ids = completion_token_ids(tokenizer, text)
    return Completion(text=text, token_ids=ids, top_k=confident_teacher(ids, len(tokenizer)) if with_teacher else None)
