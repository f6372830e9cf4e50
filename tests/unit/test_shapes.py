import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supertiny.compress.shapes import Shape, check_group_size, read_shape, shrink_config, solve
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


def test_four_tenths_of_a_billion_by_width_is_a_feed_forward_of_3456():
    smaller = solve(read_shape(QWEN_HALF_BILLION), "width", 0.82, 0.05)
    assert smaller.intermediate_size == 3456
    assert smaller.num_parameters == pytest.approx(0.40e9, rel=0.01)


def test_four_tenths_of_a_billion_by_depth_is_18_layers():
    smaller = solve(read_shape(QWEN_HALF_BILLION), "depth", 0.82, 0.05)
    assert smaller.num_hidden_layers == 18
    assert smaller.num_parameters == pytest.approx(0.40e9, rel=0.02)


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_parameter_count_is_that_of_the_transformers_model(model_type: str, tied: bool):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**{**TINY, "model_type": model_type, "head_dim": 32, "tie_word_embeddings": tied})
    if model_type == "qwen2":
        del config.head_dim
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert read_shape(config.to_dict()).num_parameters == sum(parameter.numel() for parameter in model.parameters())


@settings(deadline=None)
@given(st.integers(2, 40), st.floats(0.05, 0.99))
def test_solved_width_is_a_multiple_of_128_and_no_wider_one_fits(multiple: int, fraction: float):
    shape = read_shape({**TINY, "intermediate_size": 128 * multiple})
    try:
        smaller = solve(shape, "width", fraction, 0.99)
    except ConfigError:
        smallest = read_shape({**TINY, "intermediate_size": 128})
        assert smallest.num_parameters > fraction * shape.num_parameters
    else:
        assert smaller.intermediate_size % 128 == 0
        assert smaller.num_parameters <= fraction * shape.num_parameters
        wider = read_shape({**TINY, "intermediate_size": smaller.intermediate_size + 128})
        assert wider.intermediate_size == shape.intermediate_size or wider.num_parameters > fraction * shape.num_parameters


def test_a_target_below_every_shape_names_the_nearest():
    with pytest.raises(ConfigError, match=r"0\.1 .*nearest is num_hidden_layers 1 \(0\.308\)"):
        solve(read_shape(TINY), "depth", 0.1, 0.05)


def test_a_step_coarser_than_the_tolerance_names_the_nearest():
    with pytest.raises(ConfigError, match=r"nearest is num_hidden_layers 3 \(0\.769\) or"):
        solve(read_shape(TINY), "depth", 0.95, 0.1)


def test_a_single_layer_has_nothing_left_to_remove():
    with pytest.raises(ConfigError, match="nothing is left to remove"):
        solve(read_shape({**TINY, "num_hidden_layers": 1}), "depth", 0.5, 0.1)


def test_shrunk_config_keeps_the_layer_types_of_the_layers_that_stay():
    config = {**TINY, "layer_types": ["a", "b", "c", "d"], "max_window_layers": 3}
    shrunk = shrink_config(config, solve(read_shape(TINY), "depth", 0.8, 0.1), [0, 2, 3])
    assert shrunk["layer_types"] == ["a", "c", "d"]
    assert shrunk["num_hidden_layers"] == 3
    assert shrunk["max_window_layers"] == 2
    assert shrunk["vocab_size"] == 1024


def test_a_quantized_model_is_refused():
    with pytest.raises(ConfigError, match="quantized already"):
        read_shape({**TINY, "quantization_config": {}})


def test_an_unknown_architecture_is_refused_by_name():
    with pytest.raises(ConfigError, match="gpt2"):
        read_shape({**TINY, "model_type": "gpt2"})


def test_a_group_that_does_not_divide_a_width_is_refused():
    shape: Shape = read_shape({**TINY, "hidden_size": 288, "head_dim": 64})
    check_group_size(shape, 32)
    with pytest.raises(ConfigError, match="hidden_size 288"):
        check_group_size(shape, 64)
