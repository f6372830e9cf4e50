import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from supertiny.artifacts import resolve
from supertiny.compress.export import copy_unchanged
from supertiny.compress.retokenize import check_tokenizer
from supertiny.compress.vocabulary import (
    choose_ids,
    describe_required,
    named_ids,
    read_vocabulary,
    renumber_settings,
    required_ids,
    write_tokenizer,
)
from supertiny.errors import ConfigError, CorruptArtifact

TEACHER = resolve("package://supertiny.tasks.assistant/models/teacher", ".")
SENTENCES = ["dim the lamp in the hall", "play some jazz in the kitchen", "wake me at seven", "what is the weather in the hall today"]
CHAT = [{"role": "user", "content": "dim the lamp"}]
SCRATCH = TemporaryDirectory(prefix="supertiny-")
"""What is cut once for all examples lies in it until the tests end."""


@cache
def llama_folder() -> Path:
    """A byte-level tokenizer as Llama 3's: a beginning of text that a template writes, special tokens behind the vocabulary."""
    folder = Path(mkdtemp(dir=SCRATCH.name))
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(SENTENCES * 9, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False))
    tokenizer.add_special_tokens(["<|begin|>", "<|end|>", "<|tool|>"])
    begin = tokenizer.token_to_id("<|begin|>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", begin)])
    template = "{% for m in messages %}<|begin|>{{ m.content }}<|end|>{% endfor %}"
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|end|>", chat_template=template)
    fast.save_pretrained(folder)
    return folder


@cache
def cut(source: Path, size: int) -> tuple[Path, tuple[int, ...]]:
    """A folder of the smaller tokenizer that can write the first sentence in its own tokens, and the ids that it keeps."""
    folder, vocabulary = Path(mkdtemp(dir=SCRATCH.name)), read_vocabulary(source)
    used = {*AutoTokenizer.from_pretrained(source).encode(SENTENCES[0]), *named_ids(source, vocabulary.num_tokens)}
    kept = tuple(choose_ids(vocabulary, required_ids(vocabulary, used), size, vocabulary.num_tokens))
    config = json.loads((source / "config.json").read_text()) if (source / "config.json").exists() else {}
    (folder / "config.json").write_text(json.dumps(renumber_settings(config, kept)))
    copy_unchanged(source, folder)
    write_tokenizer(source, folder, kept)
    return folder, kept


def sizes(kind: str) -> tuple[Path, int]:
    """A tokenizer, and how many of its tokens stay."""
    return {"teacher": (TEACHER, 640), "llama": (llama_folder(), 290)}[kind]


@cache
def pair(kind: str):
    source, size = sizes(kind)
    folder, kept = cut(source, size)
    return AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(folder), kept


def both(kind: str, text: str) -> tuple[str, str]:
    old, new, _ = pair(kind)
    return new.decode(new.encode(text)), old.decode(old.encode(text))


@pytest.mark.parametrize("kind", ["teacher", "llama"])
@settings(max_examples=300)
@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=60))
def test_any_unicode_text_comes_back_as_from_the_original(kind: str, text: str):
    ours, theirs = both(kind, text)
    assert ours == theirs


@pytest.mark.parametrize("kind", ["teacher", "llama"])
@settings(max_examples=300)
@given(st.binary(max_size=60), st.sampled_from(["latin-1", "utf-8", "utf-16-le"]))
def test_random_bytes_come_back_as_from_the_original(kind: str, data: bytes, encoding: str):
    ours, theirs = both(kind, data.decode(encoding, "replace"))
    assert ours == theirs


@pytest.mark.parametrize("kind", ["teacher", "llama"])
@settings(max_examples=200)
@given(st.lists(st.sampled_from([*" ".join(SENTENCES).split(), *'abcxyz .,{}"é']), max_size=12))
def test_a_text_whose_tokens_are_all_kept_has_the_same_tokens(kind: str, words: list[str]):
    old, new, kept = pair(kind)
    ids = old.encode(" ".join(words))
    if set(ids) <= set(kept):
        assert [kept[number] for number in new.encode(" ".join(words))] == ids


def test_a_text_with_dropped_tokens_takes_more_of_the_others():
    old, new, kept = pair("llama")
    assert not set(old.encode(SENTENCES[3])) <= set(kept)
    assert len(new.encode(SENTENCES[3])) > len(old.encode(SENTENCES[3]))


@pytest.mark.parametrize("kind", ["teacher", "llama"])
def test_the_chat_template_renders_the_same(kind: str):
    old, new, _ = pair(kind)
    assert new.apply_chat_template(CHAT, tokenize=False) == old.apply_chat_template(CHAT, tokenize=False)


@pytest.mark.parametrize("kind", ["teacher", "llama"])
def test_special_tokens_keep_their_parts_and_get_new_ids(kind: str):
    old, new, kept = pair(kind)
    assert old.all_special_tokens == new.all_special_tokens
    assert [kept[number] for number in new.all_special_ids] == old.all_special_ids
    assert [kept[number] for number in new.get_added_vocab().values()] == list(old.get_added_vocab().values())


def test_the_beginning_that_a_template_writes_is_renumbered():
    _, new, _ = pair("llama")
    assert new.encode("a")[0] == new.bos_token_id < 290


@pytest.mark.parametrize("kind", ["teacher", "llama"])
def test_new_ids_are_as_many_as_asked_without_gaps(kind: str):
    _, new, kept = pair(kind)
    assert sorted(set(new.get_vocab().values())) == list(range(len(kept)))
    assert len(kept) == {"teacher": 640, "llama": 290}[kind]


def test_a_token_is_kept_with_everything_that_it_is_merged_from():
    vocabulary = read_vocabulary(llama_folder())
    required = required_ids(vocabulary, [vocabulary.ids["Ġthe"]])
    tokens = {token for token, number in vocabulary.ids.items() if number in required}
    made = [merge for merge in vocabulary.merges if "".join(merge) in tokens - set(pre_tokenizers.ByteLevel.alphabet())]
    assert all({left, right} <= tokens for left, right in made)
    assert len(made) == len(tokens) - 256


def test_what_has_to_stay_is_counted_by_what_it_is():
    vocabulary = read_vocabulary(llama_folder())
    assert describe_required(vocabulary, required_ids(vocabulary, [])).startswith("256 single bytes, 3 special and tool tokens, 0 that")
    required = required_ids(vocabulary, [vocabulary.ids["Ġthe"], vocabulary.added["<|tool|>"], vocabulary.ids["a"]])
    assert describe_required(vocabulary, required).startswith(f"256 single bytes, 3 special and tool tokens, {len(required) - 259} that")
    assert len(required) > 259


def test_a_token_that_was_added_without_a_row_is_refused_by_name():
    vocabulary = read_vocabulary(llama_folder())
    with pytest.raises(ConfigError, match=r"has 1 tokens beyond the 312 rows of the embedding, such as '<\|tool\|>'"):
        choose_ids(vocabulary, required_ids(vocabulary, []), 290, vocabulary.num_tokens - 1)


def test_rows_without_a_token_go_first():
    vocabulary = read_vocabulary(llama_folder())
    kept = choose_ids(vocabulary, required_ids(vocabulary, []), vocabulary.num_tokens, vocabulary.num_tokens + 50)
    assert kept == list(range(vocabulary.num_tokens))
    kept = choose_ids(vocabulary, required_ids(vocabulary, []), vocabulary.num_tokens + 7, vocabulary.num_tokens + 50)
    assert kept == list(range(vocabulary.num_tokens + 7))


def test_a_tokenizer_that_is_not_of_bytes_is_refused(tmp_path: Path):
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match="a WordLevel tokenizer"):
        read_vocabulary(tmp_path)


def test_a_post_processor_whose_ids_cannot_be_renumbered_is_refused_when_it_is_read(tmp_path: Path):
    shutil.copytree(llama_folder(), tmp_path, dirs_exist_ok=True)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    wrapped = {"type": "RobertaProcessing", "sep": ["<|end|>", 2], "cls": ["<|begin|>", 1], "trim_offsets": True, "add_prefix_space": False}
    processors = [tokenizer["post_processor"], wrapped]
    (tmp_path / "tokenizer.json").write_text(json.dumps({**tokenizer, "post_processor": {"type": "Sequence", "processors": processors}}))
    with pytest.raises(ConfigError, match="post-processor of type RobertaProcessing; supported: ByteLevel, TemplateProcessing, Sequence"):
        read_vocabulary(tmp_path)


def test_ids_that_a_config_names_are_renumbered():
    folder, kept = cut(TEACHER, 640)
    before, after = (json.loads((path / "config.json").read_text()) for path in (TEACHER, folder))
    assert named_ids(TEACHER, 1024) == {0, 2}
    assert [kept[after[name]] for name in ("eos_token_id", "pad_token_id")] == [before["eos_token_id"], before["pad_token_id"]]
    assert after["bos_token_id"] is None


def changed(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **values}))


def test_what_generation_settings_name_stays_and_is_renumbered(tmp_path: Path):
    source, nobody = shutil.copytree(llama_folder(), tmp_path / "source"), 600
    vocabulary = read_vocabulary(source)
    (begin, end, tool), rare = vocabulary.added.values(), sorted({*vocabulary.ids.values()} - {*cut(llama_folder(), 290)[1]})[:4]
    ids = {
        "bos_token_id": begin,
        "eos_token_id": [end, tool, nobody],
        "pad_token_id": nobody,
        "forced_bos_token_id": None,
        "forced_eos_token_id": end,
        "suppress_tokens": [rare[0], nobody],
        "begin_suppress_tokens": [nobody],
        "bad_words_ids": [[rare[1], 7], [8, nobody], [rare[2]]],
        "sequence_bias": [[[rare[3], 9], -1.5]],
    }
    others = {"do_sample": True, "temperature": 0.7, "top_k": 20, "max_new_tokens": 300, "transformers_version": "5.17.0"}
    changed(source, "generation_config.json", **ids, **others)
    assert named_ids(source, vocabulary.num_tokens) == {begin, end, tool, 7, 8, 9, *rare}
    folder, kept = cut(source, 290)
    new = {number: place for place, number in enumerate(kept)}
    assert json.loads((folder / "generation_config.json").read_text()) == {
        "bos_token_id": new[begin],
        "eos_token_id": [new[end], new[tool]],
        "pad_token_id": None,
        "forced_bos_token_id": None,
        "forced_eos_token_id": new[end],
        "suppress_tokens": [new[rare[0]]],
        "begin_suppress_tokens": None,
        "bad_words_ids": [[new[rare[1]], new[7]], [new[rare[2]]]],
        "sequence_bias": [[[new[rare[3]], new[9]], -1.5]],
        **others,
    }


def test_a_tokenizer_pads_with_the_same_token_on_its_new_row(tmp_path: Path):
    source = shutil.copytree(llama_folder(), tmp_path / "source")
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id("<|end|>"), pad_token="<|end|>")
    tokenizer.save(str(source / "tokenizer.json"))
    smaller = Tokenizer.from_file(str(cut(source, 290)[0] / "tokenizer.json"))
    assert smaller.padding == {**tokenizer.padding, "pad_id": 288}
    assert smaller.token_to_id("<|end|>") == 288


def test_a_token_that_tokenizer_json_does_not_know_is_refused_by_name(tmp_path: Path):
    source = shutil.copytree(llama_folder(), tmp_path / "source")
    changed(source, "tokenizer_config.json", pad_token="<|pad|>")
    with pytest.raises(
        ConfigError, match=r"loads 1 tokens that are not in tokenizer\.json, such as '<\|pad\|>'; load the tokenizer and save"
    ):
        read_vocabulary(source)
    changed(source, "tokenizer_config.json", pad_token=None, added_tokens_decoder={"313": {"content": "<|extra|>", "special": True}})
    with pytest.raises(ConfigError, match=r"such as '<\|extra\|>'"):
        read_vocabulary(source)
    AutoTokenizer.from_pretrained(source).save_pretrained(source)
    assert read_vocabulary(source).added["<|extra|>"] == 313


def test_a_token_of_the_vocabulary_that_is_special_in_another_file_stays(tmp_path: Path):
    source = shutil.copytree(llama_folder(), tmp_path / "source")
    changed(source, "tokenizer_config.json", pad_token="Ġtoday")
    vocabulary = read_vocabulary(source)
    assert vocabulary.ids["Ġtoday"] in required_ids(vocabulary, [])


def test_files_of_older_tokenizers_are_rewritten_too(tmp_path: Path):
    source, folder = tmp_path / "source", tmp_path / "cut"
    source.mkdir()
    folder.mkdir()
    tokenizer = json.loads((llama_folder() / "tokenizer.json").read_text())
    model = tokenizer["model"]
    merges = [" ".join(pair) for pair in model["merges"]]
    added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    decoder = {str(token["id"]): {"content": token["content"]} for token in tokenizer["added_tokens"]}
    (source / "tokenizer.json").write_text(json.dumps({**tokenizer, "model": {**model, "merges": merges}}))
    stale = {"700": {"content": "<|tool|>"}}  # transformers goes by tokenizer.json
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": {**decoder, **stale}}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    (source / "vocab.json").write_text(json.dumps(model["vocab"]))
    (source / "added_tokens.json").write_text(json.dumps(added))
    (source / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    vocabulary = read_vocabulary(source)
    write_tokenizer(source, folder, choose_ids(vocabulary, required_ids(vocabulary, []), 290, vocabulary.num_tokens))
    rewritten = json.loads((folder / "tokenizer.json").read_text())
    new_added = {token["content"]: token["id"] for token in rewritten["added_tokens"]}
    assert json.loads((folder / "vocab.json").read_text()) == rewritten["model"]["vocab"]
    assert json.loads((folder / "added_tokens.json").read_text()) == new_added == {"<|begin|>": 287, "<|end|>": 288, "<|tool|>": 289}
    assert (folder / "merges.txt").read_text().splitlines()[1:] == rewritten["model"]["merges"] == merges[: 287 - 256]
    assert json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"].keys() == {"287", "288", "289"}


def test_the_check_finds_a_token_on_another_row():
    folder, kept = cut(TEACHER, 640)
    check_tokenizer(TEACHER, folder, kept, [])
    with pytest.raises(CorruptArtifact, match="tokens have other ids than their rows"):
        check_tokenizer(TEACHER, folder, [*kept[:-2], kept[-1], kept[-2]], [])


@pytest.mark.parametrize(
    ("kind", "file", "change", "problem"),
    [
        (
            "llama",
            "tokenizer.json",
            lambda text: _with(text, decoder={"type": "Fuse"}),
            "5 of 6 texts come back differently; 0 of 1 rows have",
        ),
        (
            "teacher",
            "tokenizer.json",
            lambda text: _without_merges(text),
            "0 of 6 texts come back differently; 1 of 1 rows have other tokens",
        ),
        ("llama", "chat_template.jinja", lambda text: text + " ", "0 of 1 rows have other tokens; the chat template is another"),
    ],
)
def test_the_check_finds_other_text_other_merges_and_another_template(tmp_path: Path, kind: str, file: str, change: Any, problem: str):
    source, size = sizes(kind)
    whole, kept = cut(source, size)
    rows = [AutoTokenizer.from_pretrained(source).encode(SENTENCES[0], add_special_tokens=False)]
    check_tokenizer(source, whole, kept, rows)
    folder = tmp_path / "altered"
    shutil.copytree(whole, folder)
    (folder / file).write_text(change((folder / file).read_text()))
    with pytest.raises(CorruptArtifact, match=rf": 0 tokens have other ids .*{problem}"):
        check_tokenizer(source, folder, kept, rows)


def _with(tokenizer: str, **parts: Any) -> str:
    return json.dumps({**json.loads(tokenizer), **parts})


def _without_merges(tokenizer: str) -> str:
    return _with(tokenizer, model={**json.loads(tokenizer)["model"], "merges": []})


@pytest.mark.parametrize("tied", [True, False])
def test_kept_rows_give_the_logits_of_the_same_tokens(tied: bool):
    from supertiny.compress.prune import keep_tokens

    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Qwen2Config(**sizes, num_key_value_heads=1, tie_word_embeddings=tied)
    model, kept = Qwen2ForCausalLM(config).eval(), [3, 8, 9, 40]
    before = model(torch.tensor([[8, 40, 3]])).logits[..., kept]
    keep_tokens(model, kept)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    torch.testing.assert_close(model(torch.tensor([[1, 3, 0]])).logits, before)
