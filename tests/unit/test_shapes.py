from dataclasses import replace

import pytest

from supertiny.compress.shapes import (
    Shape,
    check_group_size,
    check_heads,
    kernel_problems,
    read_shape,
    share_problems,
    shrink_config,
    with_hidden_size,
)
from supertiny.errors import ConfigError

QWEN_HALF_BILLION = {
    "model_type": "qwen2",
    "vocab_size": 151_936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
TINY = {
    **QWEN_HALF_BILLION,
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}


def test_qwen_half_billion_has_494_million_parameters():
    assert read_shape(QWEN_HALF_BILLION).num_parameters == 494_032_768


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_parameter_count_is_that_of_the_transformers_model(model_type: str, tied: bool, biased: bool):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        **{**TINY, "model_type": model_type, "head_dim": 32, "tie_word_embeddings": tied, "attention_bias": biased}
    )
    if model_type == "qwen2":
        del config.head_dim
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert read_shape(config.to_dict()).num_parameters == sum(parameter.numel() for parameter in model.parameters())


def test_shrunk_config_keeps_the_layer_types_of_the_layers_that_stay():
    config = {**TINY, "layer_types": ["a", "b", "c", "d"], "max_window_layers": 3}
    shrunk = shrink_config(config, replace(read_shape(TINY), num_hidden_layers=3), [0, 2, 3])
    assert shrunk["layer_types"] == ["a", "c", "d"]
    assert shrunk["num_hidden_layers"] == 3
    assert shrunk["max_window_layers"] == 2
    assert shrunk["vocab_size"] == 1024


@pytest.mark.parametrize(
    ("width", "nearest"), [(700, "640 or 768"), (896, "768 or 640"), (1024, "768 or 640"), (64, "128 or 256"), (-128, "128 or 256")]
)
def test_an_embedding_width_that_kernels_do_not_take_is_refused_and_told_the_nearest(width: int, nearest: str):
    with pytest.raises(
        ConfigError, match=f"hidden_size {width}: possible are multiples of 128 below the student's 896.*nearest is {nearest}"
    ):
        with_hidden_size(read_shape(QWEN_HALF_BILLION), width)


@pytest.mark.parametrize(("width", "heads"), [(768, 12), (640, 10), (128, 2)])
def test_the_query_heads_of_qwen2_go_with_its_embedding_width(width: int, heads: int):
    shape = with_hidden_size(read_shape(QWEN_HALF_BILLION), width)
    assert (shape.hidden_size, shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim) == (width, heads, 2, 64)
    assert kernel_problems(shape) == []


def test_an_embedding_width_whose_heads_would_not_be_shared_evenly_or_be_more_than_there_are_is_refused():
    shape = read_shape({**TINY, "hidden_size": 768, "num_attention_heads": 12, "num_key_value_heads": 4})
    assert [with_hidden_size(shape, width).num_attention_heads for width in (256, 512)] == [4, 8]
    with pytest.raises(ConfigError, match=r"12 heads of 64, as many for each of its 4 key-value heads; the nearest is 256 or 512"):
        with_hidden_size(shape, 384)
    with pytest.raises(ConfigError, match="the nearest is 384 or 256"):  # of 6 heads narrower than the embedding 512 would make 8
        with_hidden_size(read_shape({**TINY, "hidden_size": 768, "num_attention_heads": 6, "head_dim": 64}), 512)
    with pytest.raises(ConfigError, match="the nearest is none"):
        with_hidden_size(read_shape({**TINY, "hidden_size": 128}), 64)


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_heads_whose_width_is_a_setting_of_its_own_stay_as_they_are(model_type: str):
    shape = read_shape({**TINY, "model_type": model_type, "head_dim": 96})
    assert with_hidden_size(shape, 128) == replace(shape, hidden_size=128)


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("explicit", [True, False])
def test_a_narrower_embedding_is_counted_as_transformers_makes_it_and_read_back_as_it_was_solved(
    model_type: str, tied: bool, biased: bool, explicit: bool
):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = {**TINY, "model_type": model_type, "tie_word_embeddings": tied, "attention_bias": biased}
    values |= {"head_dim": 64} if explicit else {}
    shape = with_hidden_size(read_shape(values), 128)
    shrunk = shrink_config(values, shape, range(4))
    assert read_shape(shrunk) == shape
    assert shrunk.get("head_dim", shrunk["hidden_size"] // shrunk["num_attention_heads"]) == shape.head_dim
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shrunk), dtype=torch.bfloat16)
    assert shape.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert shape.num_bytes() == sum(parameter.nbytes for parameter in model.parameters())
    check_group_size(shape, 64)


def test_a_quantized_model_is_refused():
    with pytest.raises(ConfigError, match="quantized already"):
        read_shape({**TINY, "quantization_config": {}})


def test_an_unknown_architecture_is_refused_and_told_what_is_supported():
    with pytest.raises(ConfigError, match="'gpt2'; supported: llama, qwen2, qwen3"):
        read_shape({**TINY, "model_type": "gpt2"})


def test_a_group_that_does_not_divide_a_width_is_refused():
    shape: Shape = read_shape({**TINY, "hidden_size": 288, "head_dim": 64})
    check_group_size(shape, 32)
    with pytest.raises(ConfigError, match="hidden_size 288"):
        check_group_size(shape, 64)


def test_a_group_that_does_not_divide_a_workers_share_is_refused():
    shape = read_shape(QWEN_HALF_BILLION)
    check_group_size(shape, 128)
    check_group_size(shape, 64, 2)
    with pytest.raises(ConfigError, match="group_size 128 does not divide the student's num_attention_heads x head_dim 896 over 2 workers"):
        check_group_size(shape, 128, 2)


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_key_value_heads_that_a_config_leaves_out_are_those_of_transformers_or_refused(model_type: str):
    from transformers import AutoConfig

    without = {name: value for name, value in TINY.items() if name != "num_key_value_heads"}
    llama = AutoConfig.for_model(**{**without, "model_type": "llama"})
    assert read_shape({**without, "model_type": "llama"}).num_key_value_heads == llama.num_key_value_heads == 4
    with pytest.raises(ConfigError, match=r"config\.json has no num_key_value_heads"):
        read_shape({**without, "model_type": model_type})


def test_a_config_without_a_size_is_refused_by_its_name():
    with pytest.raises(ConfigError, match=r"config\.json has no intermediate_size"):
        read_shape({name: value for name, value in TINY.items() if name != "intermediate_size"})


@pytest.mark.parametrize("head_dim", ["64", 64.5, -64, [64]])
def test_a_head_dim_that_is_no_number_above_zero_is_refused(head_dim: object):
    with pytest.raises(ConfigError, match=r"config\.json has head_dim .*64.*; expected a whole number above 0"):
        read_shape({**TINY, "head_dim": head_dim})


def test_bfloat16_takes_two_bytes_a_parameter():
    assert read_shape(QWEN_HALF_BILLION).num_bytes() == 2 * 494_032_768


def test_eight_bits_take_a_byte_a_weight_and_two_a_channel_and_leave_the_embedding():
    shape = replace(read_shape(TINY), num_hidden_layers=1)
    weights = 256 * (256 + 64 + 64 + 256 + 3 * 768)  # heads of 64: two key-value heads are 128 wide
    weights += 256 * 64 * 2
    channels = 256 + 128 + 128 + 256 + 768 + 768 + 256
    rest = shape.num_parameters - weights
    assert shape.num_bytes("w8a8") == 2 * rest + weights + 2 * channels


def test_qwen_half_billion_is_a_shape_that_kernels_take():
    assert kernel_problems(read_shape(QWEN_HALF_BILLION)) == []


def test_kernels_refuse_odd_widths_and_vocabularies_by_name():
    shape = replace(read_shape(TINY), intermediate_size=700, vocab_size=1000)
    assert kernel_problems(shape) == [
        "gate_proj: 700 outputs a worker are no multiple of 64",
        "up_proj: 700 outputs a worker are no multiple of 64",
        "down_proj: 700 inputs a worker are no multiple of 128",
        "vocab_size 1000 is no multiple of 64",
    ]


def test_sizes_that_workers_cannot_share_evenly_are_named():
    shape = replace(read_shape(TINY), vocab_size=1000)
    assert share_problems(shape, 2) == []
    assert share_problems(replace(shape, num_attention_heads=6, num_key_value_heads=3), 3) == [
        "3 workers do not divide padded vocab_size 1024"
    ]
    assert "5 workers do not divide intermediate_size 768" in kernel_problems(shape, 5)


def test_two_workers_want_shares_that_kernels_take():
    shape = replace(read_shape(TINY), intermediate_size=896)
    assert kernel_problems(shape) == []
    assert kernel_problems(shape, 2) == ["down_proj: 448 inputs a worker are no multiple of 128"]


def test_workers_that_do_not_divide_the_heads_are_named():
    assert "3 workers do not divide 4 heads" in kernel_problems(read_shape(TINY), 3)


def test_workers_that_no_cut_can_give_whole_heads_are_refused():
    check_heads(read_shape(QWEN_HALF_BILLION), 14)
    with pytest.raises(ConfigError, match=r"tensor_parallel_size 4: 4 workers do not divide 14 heads, which no axis changes"):
        check_heads(read_shape(QWEN_HALF_BILLION), 4)


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama"])
def test_a_config_that_leaves_the_head_dim_out_has_the_one_of_transformers(model_type: str):
    from transformers import AutoConfig

    config = {**TINY, "model_type": model_type}
    loaded = AutoConfig.for_model(**config)
    assert read_shape(config).head_dim == (getattr(loaded, "head_dim", None) or loaded.hidden_size // loaded.num_attention_heads)


@pytest.mark.parametrize("size", [0, "24", None])
def test_a_size_that_is_no_number_above_zero_is_refused(size: object):
    with pytest.raises(ConfigError, match=r"config\.json has no num_attention_heads"):
        read_shape({**TINY, "num_attention_heads": size})
