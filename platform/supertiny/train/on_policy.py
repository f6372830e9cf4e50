"""What each on-policy distillation worker runs: TRL's trainer, in which the student answers and the teacher scores.

TRL minimises a divergence between the distributions of student q and teacher p over the whole vocabulary, a mean over the completions'
tokens, some tokens at a time (`trl.kernels.chunked_divergence`). Its `beta` names the divergence:

    0            forward KL(p || q)
    1            reverse KL(q || p), which seeks the teacher's modes (MiniLLM, arXiv 2306.08543)
    in between   beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q, the generalised Jensen-Shannon divergence (GKD,
                 arXiv 2306.13649)
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import DistillationConfig, DistillationTrainer  # type: ignore[attr-defined] # they are loaded lazily

from supertiny.train.config import DistillConfig
from supertiny.train.lora import lora_config
from supertiny.train.plan import DrawPlan
from supertiny.train.prompts import read_prompts
from supertiny.train.schedule import learning_rate
from supertiny.train.trainers import DrawTrainer, common_settings, draw_settings, run_trainer


def on_policy_worker(plan: DrawPlan) -> dict[str, float]:
    """The last step's metrics; worker 0 leaves the trained student in `plan.output`. Raises what `run_trainer` raises."""
    config = plan.config
    assert isinstance(config, DistillConfig)
    (divergence,) = config.losses.weights()
    scorer = plan.teacher
    assert scorer is not None

    def build(model: Any, tokenizer: Any, callbacks: list[Any], steps_done: int) -> OnPolicy:
        teacher = AutoModelForCausalLM.from_pretrained(scorer, dtype=torch.bfloat16, attn_implementation=config.attention)
        return OnPolicy(
            model=model,
            teacher_model=teacher,
            args=trainer_settings(config, plan.num_steps, dist.get_world_size(), plan.checkpoints),
            train_dataset=Dataset.from_list([{"prompt": row.text, "prompt_id": row.prompt.id} for row in read_prompts(plan.prompts)]),
            processing_class=tokenizer,
            peft_config=lora_config(config.lora) if config.lora else None,
            callbacks=callbacks,
            steps_done=steps_done,
            rate=partial(learning_rate, num_steps=plan.num_steps, config=config),
        )

    metrics = run_trainer(plan, {}, build)
    return {**metrics, divergence: metrics["loss"]}


class OnPolicy(DrawTrainer, DistillationTrainer):
    """TRL's trainer with what we add to it."""


def trainer_settings(config: DistillConfig, num_steps: int, num_workers: int, output: Path) -> DistillationConfig:
    """TRL's words for our settings."""
    assert config.on_policy is not None
    return DistillationConfig(
        **common_settings(config, num_steps, num_workers, output),
        **draw_settings(config.on_policy),
        beta=trl_beta(config),
    )


def trl_beta(config: DistillConfig) -> float:
    """TRL's number for the divergence that a config names."""
    assert config.on_policy is not None
    (divergence,) = config.losses.weights()
    named = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": config.on_policy.jsd_beta}
    beta = named[divergence]
    assert beta is not None
    return beta
