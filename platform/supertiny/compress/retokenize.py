"""Proof that a smaller tokenizer says what the original says, and rollouts in its token ids."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from supertiny.artifacts import Artifact, make
from supertiny.compress.calibration import Batch, row_token_ids
from supertiny.compress.vocabulary import read_kept_ids
from supertiny.config import StageConfig
from supertiny.errors import CorruptArtifact
from supertiny.fresh import set_aside_stale
from supertiny.records import Rollout, TopK
from supertiny.rollout_table import ACCEPTED, iter_rollouts, write_rollouts

STRANGE_TEXTS = ("", " \n\t", "naïve café — «ответ» 東京 🏳️‍🌈", "".join(map(chr, range(0x20, 0x250))), bytes(range(256)).decode("latin-1"))
"""Texts that few tasks hold, to try a tokenizer on."""


def used_ids(tokenizer: Any, rollouts: Iterable[Rollout]) -> set[int]:
    """Every token that a task's rollouts take: prompts, tools, completions, as they were drawn and as their text encodes.

    Raises:
        CorruptArtifact: a rollout's token ids are not its text under this tokenizer, or one is no token of it.
    """
    used: set[int] = set()
    tools: set[str] = set()
    tokens = set(tokenizer.get_vocab().values())
    for rollout in rollouts:
        if strange := set(rollout.completion.token_ids) - tokens:
            raise CorruptArtifact(
                f"rollout {rollout.rollout_id}: its token id {min(strange)} is no token of the student's, so a smaller vocabulary has no "
                "place for it; make the rollouts again, with a teacher of the student's tokenizer"
            )
        used.update(row_token_ids(tokenizer, rollout), rollout.completion.token_ids)
        tools.update(json.dumps(tool, ensure_ascii=False) for tool in rollout.tools)
    for text in tools:
        used.update(tokenizer.encode(text, add_special_tokens=False))
    return used


def check_tokenizer(source: Path, folder: Path, kept_ids: Sequence[int], rows: Batch) -> None:
    """Check what was written: tokens, calibration rows and strange texts, and the chat template.

    Raises:
        CorruptArtifact: the smaller tokenizer does not say what the original says.
    """
    old, new = AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(folder)
    new_ids = {number: place for place, number in enumerate(kept_ids)}
    vocabulary = new.get_vocab()
    moved = [token for token, number in old.get_vocab().items() if number in new_ids and vocabulary.get(token) != new_ids[number]]
    texts = [*STRANGE_TEXTS, *(str(old.decode(row)) for row in rows)]
    differing = [text for text in texts if _round_trip(new, text) != _round_trip(old, text)]
    altered = [row for row in rows if [new_ids[number] for number in row] != new.encode(old.decode(row), add_special_tokens=False)]
    exact = [row for row in altered if old.encode(old.decode(row), add_special_tokens=False) == row]
    if moved or differing or exact or old.chat_template != new.chat_template:
        raise CorruptArtifact(
            f"{folder}: its tokenizer is not {source}'s less some tokens: {len(moved)} tokens have other ids than their rows, such as "
            f"{moved[:1]}; {len(differing)} of {len(texts)} texts come back differently; {len(exact)} of {len(rows)} rows have other "
            f"tokens; the chat template is {'the same' if old.chat_template == new.chat_template else 'another'}"
        )


def publish_renumbered(config: StageConfig, rollouts: Artifact, model: Artifact) -> Artifact:
    """A rollouts artifact of the accepted rows in the pruned model's token ids, to heal it and to calibrate with.

    Args:
        model: with the tokens that it kept, among them all that the rows are made of (`used_ids`).

    Raises:
        CorruptArtifact: a row has another token, since the rollouts were made again after the cut.
    """
    parents = {"rollouts": rollouts, "model": model}
    set_aside_stale(config, parents, asked_otherwise=True)  # of a model that was cut again, maybe to other tokens

    def renumbered() -> Iterator[Rollout]:
        new_ids = {number: place for place, number in enumerate(read_kept_ids(model.path))}
        for rollout in iter_rollouts(rollouts.path):
            if dropped := set(rollout.completion.token_ids) - new_ids.keys():
                raise CorruptArtifact(
                    f"{rollouts.path}: rollout {rollout.rollout_id} has the token id {min(dropped)}, which {model.path} dropped: they were "
                    f"made again after that cut; remove {model.path} and the models that were made of it, and prune again"
                )
            yield renumber_rollout(rollout, new_ids)

    def build(folder: Path) -> dict[str, Any]:
        written = write_rollouts(folder / ACCEPTED, renumbered())
        return {"rollouts": written, "accepted": written}

    return make(config, "rollouts", parents, build)


def renumber_rollout(rollout: Rollout, new_ids: Mapping[int, int]) -> Rollout:
    """A rollout whose completion is kept whole; the teacher's probability of dropped tokens goes into the tail.

    A position keeps its K places: those of dropped tokens come last with logprob -inf, which every loss takes for "not kept".
    """
    completion = rollout.completion
    token_ids = [new_ids[number] for number in completion.token_ids]
    top_k = completion.top_k and _renumber_top_k(completion.top_k, new_ids)
    return rollout.model_copy(update={"completion": completion.model_copy(update={"token_ids": token_ids, "top_k": top_k})})


def _renumber_top_k(top_k: TopK, new_ids: Mapping[int, int]) -> TopK:
    ids, logprobs = [], []
    for position_ids, position_logprobs in zip(top_k.ids, top_k.logprobs, strict=True):
        kept = [(new_ids[number], logprob) for number, logprob in zip(position_ids, position_logprobs, strict=True) if number in new_ids]
        missing = len(position_ids) - len(kept)
        ids.append([number for number, _ in kept] + [kept[0][0] if kept else 0] * missing)
        logprobs.append([logprob for _, logprob in kept] + [float("-inf")] * missing)
    return TopK(ids=ids, logprobs=logprobs)


def _round_trip(tokenizer: Any, text: str) -> str:
    decoded: str = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False))
    return decoded
