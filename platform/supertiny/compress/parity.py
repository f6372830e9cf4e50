"""Proof that vLLM serves the model that Hugging Face loads: the same files, tokens, template and distributions."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from supertiny.artifacts import Artifact, find_parent, make, open_artifact
from supertiny.compress.calibration import first_rollouts
from supertiny.compress.config import MIN_PROOF_ROWS, ParityConfig
from supertiny.errors import ConfigError, GateNotPassed
from supertiny.fresh import set_aside_stale
from supertiny.llm.chat import completion_token_ids, prompt_token_ids
from supertiny.llm.config import EngineConfig
from supertiny.llm.vllm import VllmLlm
from supertiny.records import Completion, Parity, Rollout
from supertiny.rollout_table import iter_rollouts

log = logging.getLogger(__name__)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.py")
"""Files that run code when they are loaded, or are code."""
TOKENIZER_FILES, TEMPLATE_FILES = ("tokenizer.json",), ("chat_template.jinja", "tokenizer_config.json")


class Gap(NamedTuple):
    """Two engines' distributions at some positions, compared."""

    kl_nats: float
    greedy_agreement: float
    positions: int


def prove(config: ParityConfig) -> Artifact:
    """The proof: a `Parity` in the manifest of a `parity` artifact. It fails rather than raises, so that the reasons are kept.

    Raises:
        MissingInput, CorruptArtifact: model or rollouts are not there or damaged.
        ConfigError: under 8 rollouts are there and not too long for the engine.
    """
    model = open_artifact(config.model, config.run_root, "model")
    rollouts = open_artifact(config.rollouts, config.run_root, "rollouts")
    set_aside_stale(config, {"model": model, "rollouts": rollouts})

    def build(folder: Path) -> dict[str, Any]:
        drawn = first_rollouts(iter_rollouts(rollouts.path, top_k=False), config.num_rows)
        found = compare(model, within(config.engine.max_model_len, drawn, AutoTokenizer.from_pretrained(model.path)), config)
        numbers = f"KL {found.kl_nats:.2g} nats a token, greedy agreement {found.greedy_agreement:.4f}"
        log.info("%s: %s, %s%s", config.name, found.verdict, numbers, "".join(f"; {problem}" for problem in found.problems))
        return found.model_dump(mode="json")

    return make(config, "parity", {"model": model, "rollouts": rollouts}, build)


def check_passed(proof: Artifact) -> None:
    """Raise GateNotPassed where a proof failed."""
    if proof.manifest.metrics["verdict"] != "pass":
        raise GateNotPassed(f"{proof.path}: {'; '.join(proof.manifest.metrics['problems'])}")


def compare(model: Artifact, rows: Sequence[Rollout], config: ParityConfig) -> Parity:
    """One model folder under vLLM and under Hugging Face, on the completions of some rollouts."""
    served = score_all(model.path, rows, config.top_k, config.engine)
    gap, unlike = gap_of(model.path, rows, served)
    unlike_origin, not_compared = unlike_its_origin(model, config.run_root)
    problems = [*file_problems(model), *unlike_origin, *unlike]
    if not gap.kl_nats <= config.max_kl_nats:
        problems.append(f"KL {gap.kl_nats:.4g} nats a token is over max_kl_nats {config.max_kl_nats}")
    if not gap.greedy_agreement >= config.min_greedy_agreement:
        problems.append(f"greedy agreement {gap.greedy_agreement:.4f} is under min_greedy_agreement {config.min_greedy_agreement}")
    return Parity(
        verdict="fail" if problems else "pass",
        problems=problems,
        tokenizer_sha256=_sha256(model.path, TOKENIZER_FILES),
        template_sha256=_sha256(model.path, TEMPLATE_FILES),
        not_compared=not_compared,
        **gap._asdict(),
    )


def file_problems(model: Artifact) -> list[str]:
    """Weights that are no safetensors, and weights that the manifest has no sha256 of."""
    pickles = sorted(path.name for pattern in PICKLES for path in model.path.glob(pattern))
    weights = sorted(path.name for path in model.path.glob("*.safetensors"))
    unknown = [name for name in weights if name not in model.manifest.files]
    problems = [f"{name} is no safetensors file" for name in pickles] + [f"{name} has no sha256 in the manifest" for name in unknown]
    return problems + ([] if weights else ["there are no *.safetensors"])


def unlike_its_origin(model: Artifact, run_root: str) -> tuple[list[str], str]:
    """Tokenizer or template that are not, byte for byte, those of the model that it was made from; or why they were not compared."""
    origin = model.manifest.parents.get("student")
    if origin is None:
        return [], "it was made from no other model of a run"
    if "removed_tokens" in model.manifest.metrics:
        return [], "its vocabulary was cut"
    folder = find_parent(origin, run_root)
    if folder is None:
        return [], f"{origin.uri}, which it was made from, is gone or another one now"
    parts = {"tokenizer": TOKENIZER_FILES, "template": TEMPLATE_FILES}
    unlike = [name for name, files in parts.items() if _sha256(model.path, files) != _sha256(folder, files)]
    return [f"its {name} is not that of {origin.uri}, which it was made from" for name in unlike], ""


def within(max_model_len: int, rows: Sequence[Rollout], tokenizer: Any) -> list[Rollout]:
    """The rollouts that an engine of such a context takes, one token more included, which it has to make.

    Raises:
        ConfigError: there are too few for a proof.
    """
    short = [row for row in rows if _num_tokens(row, tokenizer) < max_model_len]
    if len(short) < MIN_PROOF_ROWS:
        few = f"a proof takes rollouts of {MIN_PROOF_ROWS} prompts at least"
        if len(short) == len(rows):
            raise ConfigError(f"{few}, and there are {len(rows)}; roll more prompts out, or raise num_rows")
        raise ConfigError(f"{few}, and of {len(rows)} only {len(short)} fit engine.max_model_len {max_model_len}; raise it, or num_rows")
    if len(short) < len(rows):
        log.warning(
            "%d of %d rollouts are longer than engine.max_model_len %d, and left out", len(rows) - len(short), len(rows), max_model_len
        )
    return short


def _num_tokens(row: Rollout, tokenizer: Any) -> int:
    prompt = prompt_token_ids(tokenizer, row.prompt.messages, row.tools)
    return len(prompt) + len(completion_token_ids(tokenizer, row.completion.text))


def score_all(folder: Path, rows: Sequence[Rollout], top_k: int, engine: EngineConfig) -> list[Completion]:
    """Every rollout's completion as vLLM sees it."""

    async def together(llm: VllmLlm) -> list[Completion]:
        calls = [llm.score(row.prompt.messages, row.completion.text, tools=row.tools, logprobs=top_k) for row in rows]
        return list(await asyncio.gather(*calls))

    llm = VllmLlm(folder, engine)
    try:
        return asyncio.run(together(llm))
    finally:
        llm.close()


@torch.inference_mode()
def gap_of(folder: Path, rows: Sequence[Rollout], served: Sequence[Completion]) -> tuple[Gap, list[str]]:
    """Hugging Face's distributions against vLLM's at every completion token, and where their tokens differ."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    kl_sum, same, positions, problems = 0.0, 0, 0, []
    for row, theirs in zip(rows, served, strict=True):
        prompt = prompt_token_ids(tokenizer, row.prompt.messages, row.tools)
        answer = completion_token_ids(tokenizer, row.completion.text)
        if theirs.token_ids != answer or theirs.usage.prompt_tokens != len(prompt) + len(answer):
            problems.append(f"rollout {row.rollout_id}: vLLM and Hugging Face make different tokens of it")
            continue
        assert theirs.top_k is not None
        p_TV = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
        ids_TK, q_TK = torch.tensor(theirs.top_k.ids), torch.tensor(theirs.top_k.logprobs)
        kl_sum += kl_of_kept(p_TV.gather(-1, ids_TK), q_TK).sum().item()
        same += int((p_TV.argmax(-1) == ids_TK[:, 0]).sum())
        positions += len(answer)
    return Gap(kl_sum / max(positions, 1), same / max(positions, 1), positions), problems


def kl_of_kept(p_TK: torch.Tensor, q_TK: torch.Tensor) -> torch.Tensor:
    """Float (T,): KL(p ‖ q) with all tokens but the K kept taken as one; at most the KL over all tokens. Natural-log probabilities in."""
    p_tail_T, q_tail_T = (logprobs.exp().sum(-1).neg().add(1).clamp(min=1e-6) for logprobs in (p_TK, q_TK))
    return (p_TK.exp() * (p_TK - q_TK)).sum(-1) + p_tail_T * (p_tail_T / q_tail_T).log()


def _sha256(folder: Path, names: Sequence[str]) -> str:
    """Of some files together; those that a model has not are left out."""
    digest = hashlib.sha256()
    for name in names:
        if (folder / name).exists():
            digest.update((folder / name).read_bytes())
    return digest.hexdigest()
