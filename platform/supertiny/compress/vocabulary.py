"""Which tokens of a byte-level BPE tokenizer stay, and the tokenizer of those: files in, files out, no weights.

Any text still encodes, since every byte stays. A text whose tokens are all kept encodes as before: the merges that stay are a subset of the
original's, in its order, and hold all that a kept token is made by, so the text goes through the same merges.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supertiny.errors import ConfigError, MissingInput

ID_FILES = ("config.json", "generation_config.json")
"""Files whose settings name tokens: every `..._token_id`, and `ID_LISTS`."""
ID_LISTS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "sequence_bias")
"""Lists of ids or, the last two, of sequences of ids."""
PROCESSORS = {"ByteLevel", "TemplateProcessing"}
"""Post-processors that are renumbered, or have no ids."""
KEPT_IDS = "kept_ids.json"
"""File of a model folder whose vocabulary was cut: the ids that its tokens had before, by their new ones."""


@dataclass(frozen=True)
class Vocabulary:
    """A byte-level BPE tokenizer as its `tokenizer.json` describes it."""

    ids: Mapping[str, int]
    """Every token that BPE makes, with its id."""
    merges: Sequence[tuple[str, str]]
    """In the order in which they are tried."""
    added: Mapping[str, int]
    """Special and tool tokens, matched before BPE, with their ids."""

    @property
    def num_tokens(self) -> int:
        """Different ids."""
        return len({*self.ids.values(), *self.added.values()})


def read_vocabulary(folder: Path) -> Vocabulary:
    """The vocabulary of a model folder.

    Raises:
        MissingInput: there is no tokenizer.json.
        ConfigError: another kind of tokenizer, where dropping a token could lose text, a post-processor whose ids cannot be renumbered, or
            other files add tokens to it.
    """
    from transformers import PreTrainedTokenizerFast

    path = folder / "tokenizer.json"
    if not path.exists():
        raise MissingInput(f"{folder}: no tokenizer.json; a vocabulary is cut for fast tokenizers only")
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    model = tokenizer["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback") or not _is_byte_level(tokenizer):
        raise ConfigError(
            f"{path}: a {model.get('type')} tokenizer; a vocabulary is cut for byte-level BPE only, where any text still encodes"
        )
    if strange := {*_processors(tokenizer.get("post_processor"))} - PROCESSORS:
        raise ConfigError(f"{path}: a post-processor of type {min(strange)}; supported: {', '.join(sorted(PROCESSORS))}, Sequence")
    added = {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}
    loaded = PreTrainedTokenizerFast.from_pretrained(folder).get_added_vocab()  # with those that other files name
    known = {**model["vocab"], **added}
    elsewhere = [token for token, number in loaded.items() if known.get(token) != number]
    if elsewhere:
        raise ConfigError(
            f"{folder}: transformers loads {len(elsewhere)} tokens that are not in tokenizer.json, such as {elsewhere[0]!r}; load the "
            "tokenizer and save it (AutoTokenizer.from_pretrained, save_pretrained), so that they are, and adopt the model again"
        )
    return Vocabulary(model["vocab"], [_pair(merge) for merge in model["merges"]], {**added, **loaded})


def required_ids(vocabulary: Vocabulary, needed: Iterable[int]) -> set[int]:
    """Ids that have to stay: those needed, every byte, every special and tool token, and all that they are merged from."""
    needed = set(needed)
    wanted = [token for token, number in vocabulary.ids.items() if number in needed]
    closed = _closure(vocabulary, [*_alphabet(vocabulary), *wanted, *(token for token in vocabulary.added if token in vocabulary.ids)])
    return {*(vocabulary.ids[token] for token in closed), *vocabulary.added.values(), *needed}


def describe_required(vocabulary: Vocabulary, required: set[int]) -> str:
    """How many of the ids that have to stay there are of each kind."""
    special = {*vocabulary.added.values()}
    single = {vocabulary.ids[token] for token in _alphabet(vocabulary)} - special
    others = f"{len(required - single - special)} that rollouts and settings use, with what those are merged from"
    return f"{len(single)} single bytes, {len(special)} special and tool tokens, {others}"


def choose_ids(vocabulary: Vocabulary, required: set[int], size: int, num_rows: int) -> list[int]:
    """The `size` ids to keep, rising: the required ones, then those merged first, which are the most frequent in the tokenizer's own text.

    Args:
        size: at least the required ones, which the solver sees to.
        num_rows: rows of the embedding; those without a token come last.

    Raises:
        ConfigError: as `check_rows`.
    """
    check_rows(vocabulary, num_rows)
    kept = set(required)
    tokens = {token for token, number in vocabulary.ids.items() if number in kept}
    for left, right in vocabulary.merges:
        if len(kept) == size:
            break
        if left in tokens and right in tokens:
            tokens.add(left + right)
            kept.add(vocabulary.ids[left + right])
    others = [number for number in (*vocabulary.ids.values(), *range(num_rows)) if number not in kept]
    return sorted([*kept, *dict.fromkeys(others)][:size]) if len(kept) < size else sorted(kept)


def check_rows(vocabulary: Vocabulary, num_rows: int) -> None:
    """Raise ConfigError where a token has none of the embedding's rows."""
    rowless = [token for token, number in {**vocabulary.ids, **vocabulary.added}.items() if number >= num_rows]
    if rowless:
        raise ConfigError(
            f"the tokenizer has {len(rowless)} tokens beyond the {num_rows:,} rows of the embedding, such as {rowless[0]!r}; "
            "give them rows (resize_token_embeddings) or take them out of the tokenizer"
        )


def write_tokenizer(source: Path, folder: Path, kept_ids: Sequence[int]) -> None:
    """Rewrite every file of a model folder that names tokens, but config.json, for the kept ones: a new id is a place in `kept_ids`.

    Those ids lie beside them, so that whatever is renumbered later is as the model is.
    """
    new_ids = {old: new for new, old in enumerate(kept_ids)}
    _rewrite(source, folder, "tokenizer.json", lambda values: _shrink(values, new_ids))
    _rewrite(source, folder, "tokenizer_config.json", lambda values: _renumber_config(values, new_ids))
    for name in ("vocab.json", "added_tokens.json"):
        _rewrite(source, folder, name, lambda values: _renumber(values, new_ids))
    _rewrite(folder, folder, "generation_config.json", lambda values: renumber_settings(values, kept_ids))
    _write_merges(source, folder)
    (folder / KEPT_IDS).write_text(json.dumps(list(kept_ids)), encoding="utf-8")


def renumber_settings(settings: Mapping[str, Any], kept_ids: Sequence[int]) -> dict[str, Any]:
    """A model's config or how it generates, with the new ids of the kept tokens where it names some; those of no row become None."""
    new_ids = {old: new for new, old in enumerate(kept_ids)}
    return {key: _new(value, new_ids) if _names_tokens(key) else value for key, value in settings.items()}


def read_kept_ids(folder: Path) -> list[int]:
    """The ids that the tokens of a cut vocabulary had before, rising; raises MissingInput where the folder does not say."""
    path = folder / KEPT_IDS
    if not path.exists():
        raise MissingInput(f"{path}: not there, so nothing says which tokens stayed; remove {folder} and prune again")
    kept_ids: list[int] = json.loads(path.read_text(encoding="utf-8"))
    return kept_ids


def named_ids(folder: Path, num_rows: int) -> set[int]:
    """Ids that the settings of a model folder name, such as `eos_token_id`, but those beyond the rows of the embedding."""
    named: set[int] = set()
    for name in ID_FILES:
        settings = json.loads((folder / name).read_text(encoding="utf-8")) if (folder / name).exists() else {}
        named.update(number for key, value in settings.items() if _names_tokens(key) for number in _ids_in(value))
    return named & set(range(num_rows))


def _alphabet(vocabulary: Vocabulary) -> list[str]:
    """Tokens of a single byte, which any text can be made of."""
    from tokenizers.pre_tokenizers import ByteLevel

    return [token for token in ByteLevel.alphabet() if token in vocabulary.ids]


def _closure(vocabulary: Vocabulary, tokens: Iterable[str]) -> set[str]:
    """Tokens and, merge by merge, everything that any of them is merged from."""
    made_from: dict[str, list[str]] = defaultdict(list)
    for left, right in vocabulary.merges:
        made_from[left + right] += [left, right]
    closed, waiting = set(), list(tokens)
    while waiting:
        token = waiting.pop()
        if token not in closed:
            closed.add(token)
            waiting += made_from.get(token, [])
    return closed


def _shrink(tokenizer: dict[str, Any], new_ids: Mapping[int, int]) -> dict[str, Any]:
    model = tokenizer["model"]
    vocabulary = _renumber(model["vocab"], new_ids)
    merges = [merge for merge in model["merges"] if {*_pair(merge), "".join(_pair(merge))} <= vocabulary.keys()]
    added = [{**token, "id": new_ids[token["id"]]} for token in tokenizer["added_tokens"]]
    model = {**model, "vocab": vocabulary, "merges": merges}
    padding = tokenizer.get("padding")
    return {
        **tokenizer,
        "model": model,
        "added_tokens": added,
        "padding": {**padding, "pad_id": new_ids[padding["pad_id"]]} if padding and padding["pad_id"] in new_ids else None,
        "post_processor": _renumber_templates(tokenizer.get("post_processor"), new_ids),
    }


def _renumber_templates(processor: Any, new_ids: Mapping[int, int]) -> Any:
    """A post-processor whose special tokens, which it writes around a text, have their new ids."""
    if not isinstance(processor, dict):
        return processor
    if processor.get("type") == "Sequence":
        return {**processor, "processors": [_renumber_templates(each, new_ids) for each in processor["processors"]]}
    if processor.get("type") == "TemplateProcessing":
        special = processor["special_tokens"].items()
        return {**processor, "special_tokens": {name: {**token, "ids": _new(token["ids"], new_ids)} for name, token in special}}
    return processor


def _processors(processor: Any) -> Iterator[str]:
    """The types of what a post-processor consists of."""
    if isinstance(processor, dict) and processor.get("type") == "Sequence":
        for each in processor["processors"]:
            yield from _processors(each)
    elif processor is not None:
        yield processor["type"]


def _renumber_config(config: dict[str, Any], new_ids: Mapping[int, int]) -> dict[str, Any]:
    if "added_tokens_decoder" not in config:
        return config
    decoder = {str(new_ids[int(number)]): token for number, token in config["added_tokens_decoder"].items() if int(number) in new_ids}
    return {**config, "added_tokens_decoder": decoder}


def _renumber(vocabulary: Mapping[str, int], new_ids: Mapping[int, int]) -> dict[str, int]:
    return {token: new_ids[number] for token, number in vocabulary.items() if number in new_ids}


def _names_tokens(setting: str) -> bool:
    return setting.endswith("_token_id") or setting in ID_LISTS


def _ids_in(value: Any) -> Iterator[int]:
    if isinstance(value, list):
        for each in value:
            yield from _ids_in(each)
    elif isinstance(value, int):
        yield value


def _new(value: Any, new_ids: Mapping[int, int]) -> Any:
    """Ids by their new ones; one that was no row of the embedding becomes None, or leaves its list with the sequence that it is in."""
    if isinstance(value, list):
        return [_new(each, new_ids) for each in value if new_ids.keys() >= set(_ids_in(each))] or None
    return new_ids.get(value) if isinstance(value, int) else value  # a bias is a float


def _rewrite(source: Path, folder: Path, name: str, change: Any) -> None:
    if (source / name).exists():
        values = json.loads((source / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps(change(values), ensure_ascii=False, indent=2), encoding="utf-8")


def _write_merges(source: Path, folder: Path) -> None:
    """`merges.txt`, the older form of the merges, where the model came with it."""
    if (source / "merges.txt").exists():
        merges = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["merges"]
        lines = ["#version: 0.2", *(" ".join(_pair(merge)) for merge in merges)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _pair(merge: Any) -> tuple[str, str]:
    """A merge's two tokens; older files write them as one text."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _is_byte_level(tokenizer: Mapping[str, Any]) -> bool:
    return any('"ByteLevel"' in json.dumps(tokenizer.get(part)) for part in ("pre_tokenizer", "decoder"))
