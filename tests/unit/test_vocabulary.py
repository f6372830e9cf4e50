import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from supertiny.artifacts import resolve
from supertiny.compress.retokenize import check_tokenizer, renumber_rollout, renumbered, used_ids
from supertiny.compress.vocabulary import choose_ids, named_ids, read_vocabulary, required_ids, write_tokenizer
from supertiny.errors import ConfigError, CorruptArtifact
from supertiny.records import Completion, Prompt, Rollout, TopK, Verdict

TEACHER = resolve("package://supertiny.tasks.assistant/models/teacher", ".")
SENTENCES = ["dim the lamp in the hall", "play some jazz in the kitchen", "wake me at seven", "what is the weather in the hall today"]
CHAT = [{"role": "user", "content": "dim the lamp"}]


@cache
def llama_folder() -> Path:
    """A byte-level tokenizer as Llama 3's: a beginning of text that a template writes, special tokens behind the vocabulary."""
    folder = Path(mkdtemp())
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
    folder, vocabulary = Path(mkdtemp()), read_vocabulary(source)
    used = AutoTokenizer.from_pretrained(source).encode(SENTENCES[0])
    kept = tuple(choose_ids(vocabulary, required_ids(vocabulary, used), size, vocabulary.num_tokens))
    (folder / "config.json").write_text((source / "config.json").read_text() if (source / "config.json").exists() else "{}")
    for name in ("chat_template.jinja", "special_tokens_map.json"):
        if (source / name).exists():
            (folder / name).write_bytes((source / name).read_bytes())
    write_tokenizer(source, folder, kept)
    return folder, kept


@cache
def pair(kind: str):
    source, size = {"teacher": (TEACHER, 640), "llama": (llama_folder(), 290)}[kind]
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


def test_a_size_that_would_drop_a_special_token_is_refused():
    vocabulary = read_vocabulary(llama_folder())
    required = required_ids(vocabulary, [])
    assert len(required) == 256 + 3
    with pytest.raises(ConfigError, match="would drop 3 of the 259 tokens that have to stay: the 3 special and tool tokens"):
        choose_ids(vocabulary, required, 256, vocabulary.num_tokens)


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


def test_ids_that_a_config_names_are_renumbered():
    folder, kept = cut(TEACHER, 640)
    before, after = (json.loads((path / "config.json").read_text()) for path in (TEACHER, folder))
    assert named_ids(before) == {0, 2}
    assert [kept[after[name]] for name in ("eos_token_id", "pad_token_id")] == [before["eos_token_id"], before["pad_token_id"]]
    assert after["bos_token_id"] is None


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
    (source / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
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


def rollout() -> Rollout:
    top_k = TopK(ids=[[5, 8, 7], [8, 9, 6], [6, 5, 8]], logprobs=[[-0.1, -2.5, -4.0], [-0.7, -0.9, -3.0], [-0.2, -3.0, -5.0]])
    return Rollout(
        rollout_id="p/0",
        index=0,
        prompt=Prompt(id="p", messages=CHAT),
        tools=[],
        completion=Completion(text="x", token_ids=[5, 7, 6], top_k=top_k),
        verdict=Verdict(accepted=True, score=1),
        seconds=0,
    )


def test_the_teachers_probability_of_dropped_tokens_goes_into_the_tail():
    nothing = float("-inf")
    moved = renumber_rollout(rollout(), [5, 6, 7]).completion
    assert moved.token_ids == [0, 2, 1]
    assert moved.top_k.ids == [[0, 2, 0], [1, 1, 1], [1, 0, 1]]
    assert moved.top_k.logprobs == [[-0.1, -4.0, nothing], [-3.0, nothing, nothing], [-0.2, -3.0, nothing]]


def test_renumbered_rollouts_survive_the_table_with_their_tail(tmp_path: Path):
    from supertiny.rollout_table import read_rollouts, read_table, write_rollouts

    moved = renumber_rollout(rollout(), [5, 6, 7])
    write_rollouts(tmp_path / "rollouts.parquet", [moved])
    assert read_rollouts(tmp_path)[0].completion.top_k.ids == moved.completion.top_k.ids
    tail = read_table(tmp_path / "rollouts.parquet").column("teacher_tail_mass").to_pylist()[0]
    assert tail == pytest.approx((1 - torch.tensor([[-0.1, -4.0], [-3.0, -99], [-0.2, -3.0]]).exp().sum(-1)).tolist(), abs=1e-5)


def test_used_tokens_are_those_of_prompts_completions_and_tools():
    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    with_tools = rollout().model_copy(update={"tools": [{"function": {"name": "zebra"}}]})
    assert set(tokenizer.encode("zebra")) <= used_ids(tokenizer, [with_tools])
    assert {5, 7, 6, *tokenizer.encode("dim the lamp")} <= used_ids(tokenizer, [rollout()])


def test_rows_are_renumbered_token_by_token():
    assert renumbered([[9, 4], [7]], [4, 7, 9]) == [[2, 0], [1]]


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
