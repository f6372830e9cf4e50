import copy
import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from tensorboard_events import events_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from supertiny.artifacts import open_artifact
from supertiny.config import validate
from supertiny.errors import ConfigError, MissingInput
from supertiny.llm.chat import completion_token_ids, prompt_token_ids
from supertiny.records import Call
from supertiny.tasks.assistant.task import AssistantTask
from supertiny.tasks.calls import render
from supertiny.train.pretrain import collate, learning_rate, pretrain
from supertiny.train.pretrain_config import PretrainConfig
from supertiny.train.tokenizer import make_tokenizer

MINUSCULE = {"vocabulary_size": 512, "hidden_size": 64, "feed_forward_size": 64, "num_layers": 1, "num_key_value_heads": 1}
CALL = Call(name="set_light", arguments={"room": "kitchen", "level": 40, "label": "Zorbin"})


@pytest.fixture(scope="module")
def tokenizer() -> object:
    examples = islice(AssistantTask().pretraining_examples("teacher", 0), 2000)
    return make_tokenizer((text for messages, answer in examples for text in (messages[-1]["content"], answer)), 768)


def _config(tmp_path: Path, **values: object) -> PretrainConfig:
    defaults = {
        "name": "tiny",
        "role": "base",
        "run_root": str(tmp_path),
        "model": MINUSCULE,
        "steps": 30,
        "batch": 8,
        "log_every_steps": 10,
    }
    return validate(PretrainConfig, {**defaults, "warmup_steps": 5, "tokenizer_examples": 500, **values}, "test")


def test_pretraining_lowers_the_loss_and_publishes_a_model_that_loads(tmp_path: Path) -> None:
    artifact = pretrain(_config(tmp_path))
    assert artifact.manifest.metrics["loss"] < artifact.manifest.metrics["first_loss"] - 0.5
    opened = open_artifact("tiny", str(tmp_path), "model")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(opened.path), AutoTokenizer.from_pretrained(opened.path)
    assert model.dtype == torch.bfloat16
    assert model.num_parameters() == opened.manifest.metrics["parameters"]
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    other = pretrain(_config(tmp_path, name="other", tokenizer="tiny", steps=1))
    assert (other.path / "tokenizer.json").read_bytes() == (opened.path / "tokenizer.json").read_bytes()


def test_pretraining_shows_its_loss_in_tensorboard_too(tmp_path: Path) -> None:
    artifact = pretrain(_config(tmp_path, steps=4, log_every_steps=2))
    lines = [json.loads(line) for line in (artifact.path / "metrics.jsonl").read_text().splitlines()]
    (events,) = (artifact.path / "tensorboard").iterdir()
    written = [(event.step, value.simple_value) for event in events_of(events) for value in event.summary.value if value.tag == "loss"]
    assert written == [(line["step"], pytest.approx(line["loss"], rel=1e-5)) for line in lines]


def test_trackers_are_no_setting_of_the_result(tmp_path: Path) -> None:
    assert pretrain(_config(tmp_path, steps=2)).manifest == pretrain(_config(tmp_path, steps=2, trackers=())).manifest


def test_pretraining_again_repeats_nothing(tmp_path: Path) -> None:
    first, second = (pretrain(_config(tmp_path, steps=2)).manifest for _ in range(2))
    assert first == second


def test_a_tokenizer_of_other_texts_too_has_tokens_that_the_task_does_not_need(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("xylophone quixotry\n" * 5000)
    model = {**MINUSCULE, "vocabulary_size": 768}
    own = pretrain(_config(tmp_path, name="own", steps=1, model=model))
    texts = [str(text), "package://pydoc_data/topics.py"]
    wider = pretrain(_config(tmp_path, name="wider", steps=1, model=model, tokenizer_texts=texts))
    tokens = [len(AutoTokenizer.from_pretrained(each.path).encode("xylophone quixotry")) for each in (own, wider)]
    assert tokens[1] == 3 < tokens[0]  # a word, a space and a word
    with pytest.raises(MissingInput, match=r"nothing at .*nowhere\.txt"):
        pretrain(_config(tmp_path, name="none", tokenizer_texts=["nowhere.txt"]))
    with pytest.raises(ConfigError, match="is no text in UTF-8"):
        pretrain(_config(tmp_path, name="none", tokenizer_texts=[str(tmp_path)]))
    assert "tokenizer_texts" not in own.manifest.config
    with pytest.raises(ConfigError, match="tokenizer_texts: without effect"):
        _config(tmp_path, tokenizer="own", tokenizer_texts=[str(text)])


def test_a_task_without_examples_cannot_be_pretrained_on(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no pretraining_examples"):
        pretrain(_config(tmp_path, task={"path": "collections:OrderedDict"}))


def test_heads_must_divide_among_the_key_value_heads(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not divide the 1 heads"):
        _config(tmp_path, model={**MINUSCULE, "num_key_value_heads": 2})


def test_only_answers_have_full_weight_and_padding_none() -> None:
    ids_BT, weights_BT = collate([([5, 6], [7, 8]), ([5], [9])], 0.25)
    assert ids_BT.tolist() == [[5, 6, 7, 8], [5, 9, 0, 0]]
    assert weights_BT.tolist() == [[0.25, 1, 1], [1, 0, 0]]


def test_the_learning_rate_rises_and_falls_to_nothing(tmp_path: Path) -> None:
    config = _config(tmp_path, learning_rate=0.1, warmup_steps=10)
    assert [learning_rate(step, config) for step in (1, 10, 20, 30)] == pytest.approx([0.01, 0.1, 0.05, 0])


@pytest.mark.parametrize(
    "text", ["Grüße, 日本 🎉", 'a "b": {x}}\n\t', "<tool_call>\n</tool_call> <|im_end|>", "\x00\x7f  two  spaces ", render([CALL])]
)
def test_any_text_comes_back_from_its_tokens(tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_a_value_has_the_same_tokens_in_the_prompt_and_in_the_call(tokenizer) -> None:
    def pieces(text: str) -> str:
        return f" {' '.join(str(token) for token in completion_token_ids(tokenizer, text)[:-1])} "

    for value in ("Zorbin", "guest room", "07:40"):
        assert pieces(value) in pieces(f"set the {value} alarm")
        assert pieces(value) in pieces(render([Call(name="f", arguments={"label": value})]))


def test_a_call_costs_few_tokens_around_its_values(tokenizer) -> None:
    assert len(completion_token_ids(tokenizer, render([Call(name="set", arguments={"room": "kitchen"})]))) <= 10


def test_a_saved_tokenizer_is_loaded_as_it_was(tokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    text = render([CALL])
    assert AutoTokenizer.from_pretrained(tmp_path).encode(text) == tokenizer.encode(text)


def test_the_chat_template_shows_calls_and_leaves_the_tools_out(tokenizer) -> None:
    call = {"type": "function", "function": {"name": "set_light", "arguments": {"room": "Küche"}}}
    messages = [
        {"role": "system", "content": "route"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": None, "tool_calls": [call, call]},
        {"role": "tool", "content": "done"},
    ]
    block = '<tool_call>\n{"name": "set_light", "arguments": {"room": "Küche"}}\n</tool_call>'
    expected = f"system\nroute|user\nhi|assistant\n{block}\n{block}|tool\ndone|assistant\n"
    rendered = tokenizer.decode(prompt_token_ids(tokenizer, messages, AssistantTask().tools))
    assert rendered.replace("<|im_end|>\n<|im_start|>", "|").removeprefix("<|im_start|>") == expected


QWEN = """{%- if tools %}{{- '<|im_start|>system\\n# Tools\\n<tools>' }}{%- for tool in tools %}{{- '\\n' + tool | tojson }}{%- endfor %}
{{- '\\n</tools><|im_end|>\\n' }}{%- endif %}{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""


def test_a_template_that_renders_tools_gets_them_from_the_same_code(tokenizer) -> None:
    qwen = copy.deepcopy(tokenizer)
    qwen.chat_template = QWEN
    tools, messages = AssistantTask().tools, [{"role": "user", "content": "hi"}]
    rendered = qwen.decode(prompt_token_ids(qwen, messages, tools))
    listed = rendered.partition("<tools>\n")[2].partition("\n</tools>")[0].splitlines()
    assert [json.loads(line) for line in listed] == tools
    assert rendered.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert "<tools>" not in qwen.decode(prompt_token_ids(qwen, messages, []))
