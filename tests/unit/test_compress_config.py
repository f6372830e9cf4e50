from pathlib import Path

import pytest

from supertiny.compress.config import LatencyConfig, ParityConfig, PruneConfig, QuantizeConfig
from supertiny.config import Config, load, validate
from supertiny.errors import ConfigError
from supertiny.evaluate.config import GateConfig
from supertiny.formats import FORMAT_NAMES
from supertiny.pipeline.config import PipelineConfig
from supertiny.pipeline.recover_config import RecoverConfig

DEMO = Path(__file__).parents[2] / "jobs" / "configs" / "demo"


def test_awq_defaults_are_shown_in_the_resolved_config():
    config = load(QuantizeConfig, DEMO / "awq.toml")
    assert (config.group_size, config.num_scales) == (128, 20)


def test_what_won_where_it_was_measured_is_the_default():
    assert (QuantizeConfig().name, QuantizeConfig().format, ParityConfig().model, GateConfig().candidate) == (
        "w8a8",
        "w8a8",
        "w8a8",
        "eval-w8a8",
    )


def test_a_quantized_model_is_named_after_its_format_and_never_after_another():
    names = {form: validate(QuantizeConfig, {"format": form}, "test").name for form in FORMAT_NAMES}
    assert names == {"awq_w4a16": "awq", "gptq_w4a16": "gptq", "w8a8": "w8a8", "fp8_dynamic": "fp8"}
    assert validate(QuantizeConfig, {"format": "gptq_w4a16", "name": "small"}, "test").name == "small"
    problem = "name w8a8 is what a model in w8a8 is called, and the format is gptq_w4a16; set name=gptq"
    with pytest.raises(ConfigError, match=problem):
        load(QuantizeConfig, DEMO / "w8a8.toml", ["format=gptq_w4a16"])


def test_single_jobs_take_what_the_default_curriculum_makes_and_the_demos_files_what_its_own_does():
    last = PipelineConfig.model_fields["curriculum"].default[-1]
    recovery = {"heal": {}, "evaluate": {}}
    assert (PruneConfig().student, LatencyConfig().student, RecoverConfig.model_validate(recovery).baseline) == (last, last, f"eval-{last}")
    last = load(PipelineConfig, DEMO / "pipeline.toml").curriculum[-1]
    assert load(PruneConfig, DEMO / "prune.toml").settings() == load(PipelineConfig, DEMO / "pipeline.toml").prune.settings()
    assert load(LatencyConfig, DEMO / "latency.toml").student == last
    assert load(RecoverConfig, DEMO / "recover.toml").baseline == f"eval-{last}"


@pytest.mark.parametrize("name", ["awq", "w8a8"])
def test_a_resolved_config_is_itself_a_config(name: str):
    config = load(QuantizeConfig, DEMO / f"{name}.toml")
    assert validate(QuantizeConfig, config.model_dump(mode="json"), "test") == config


@pytest.mark.parametrize("setting", ["group_size=64", "num_scales=5"])
def test_a_setting_of_awq_is_refused_on_w8a8(setting: str):
    with pytest.raises(ConfigError, match="without effect on w8a8"):
        load(QuantizeConfig, DEMO / "w8a8.toml", [setting])


def test_groups_are_a_setting_of_gptq_and_scales_are_not():
    assert validate(QuantizeConfig, {"format": "gptq_w4a16"}, "test").group_size == 128
    with pytest.raises(ConfigError, match="num_scales: without effect on gptq_w4a16; only awq_w4a16 has it"):
        validate(QuantizeConfig, {"format": "gptq_w4a16", "num_scales": 5}, "test")


def test_smoothing_is_a_setting_of_calibrated_w8a8():
    assert load(QuantizeConfig, DEMO / "w8a8.toml", ["smoothing_strength=0.5"]).smoothing_strength == 0.5
    for others in ({"format": "gptq_w4a16"}, {"format": "w8a8", "rounding": "nearest"}):
        with pytest.raises(ConfigError, match="smoothing_strength: without effect; only calibrated w8a8 has it"):
            validate(QuantizeConfig, {**others, "smoothing_strength": 0.5}, "test")


def test_workers_are_a_setting_of_formats_in_groups_and_change_no_weight():
    config = load(QuantizeConfig, DEMO / "awq.toml", ["tensor_parallel_size=2"])
    assert config.settings() == load(QuantizeConfig, DEMO / "awq.toml").settings()
    with pytest.raises(ConfigError, match="tensor_parallel_size: without effect on w8a8, which has no groups"):
        load(QuantizeConfig, DEMO / "w8a8.toml", ["tensor_parallel_size=2"])


def test_to_nearest_no_scales_are_tried():
    awq = {"format": "awq_w4a16", "rounding": "nearest"}
    assert validate(QuantizeConfig, awq, "test").num_scales is None
    with pytest.raises(ConfigError, match="num_scales: without effect where every weight is rounded to nearest"):
        validate(QuantizeConfig, {**awq, "num_scales": 5}, "test")


def test_a_setting_of_awq_is_taken_on_awq():
    assert load(QuantizeConfig, DEMO / "awq.toml", ["group_size=64"]).group_size == 64


@pytest.mark.parametrize("setting", ["target_parameters_fraction=1.0", "num_rows=0", "axis=height", "tolerance=0.1"])
def test_a_bad_pruning_setting_is_named(setting: str):
    with pytest.raises(ConfigError, match=setting.split("=")[0]):
        load(PruneConfig, DEMO / "prune.toml", [setting])


@pytest.mark.parametrize("axis", ["vocab", "depth", "vocab+depth"])
def test_an_embedding_width_is_refused_where_no_width_is_cut_and_off_where_none_is_set(axis: str):
    with pytest.raises(ConfigError, match="hidden_size: without effect on axis"):
        validate(PruneConfig, {"axis": axis, "hidden_size": 128}, "test")
    assert PruneConfig().hidden_size is None


def test_an_embedding_width_is_refused_with_a_target_in_seconds_which_knows_none():
    with pytest.raises(ConfigError, match="hidden_size and target_seconds_per_token are both set; latencies know one embedding width"):
        validate(PruneConfig, {"hidden_size": 128, "target_seconds_per_token": 0.01}, "test")


@pytest.mark.parametrize("axis", ["vocab+width", "vocab", "depth+width"])
def test_a_size_of_an_axis_that_is_not_cut_is_refused(axis: str):
    size = "intermediate_size" if axis == "vocab" else "num_hidden_layers" if axis == "vocab+width" else "vocab_size"
    with pytest.raises(ConfigError, match=f"{size}: without effect on axis"):
        validate(PruneConfig, {"axis": axis, size: 128}, "test")


def test_two_targets_are_refused():
    with pytest.raises(ConfigError, match="target_parameters and target_bytes are both set"):
        validate(PruneConfig, {"target_parameters": 5, "target_bytes": 9}, "test")


def test_a_way_to_choose_layers_is_refused_where_none_are_removed():
    with pytest.raises(ConfigError, match="influence: without effect on axis width"):
        validate(PruneConfig, {"influence": "loss"}, "test")
    with pytest.raises(ConfigError, match="without effect on contiguous layers"):
        validate(PruneConfig, {"axis": "depth", "layers": "contiguous", "influence": "loss"}, "test")


def test_a_cut_is_to_eight_tenths_where_no_target_is_set():
    assert PruneConfig().target_parameters_fraction == 0.8
    assert PruneConfig(target_bytes=9).target_parameters_fraction is None


@pytest.mark.parametrize(
    "values", [{}, {"axis": "depth"}, {"axis": "vocab+depth", "layers": "contiguous"}, {"target_bytes": 9}, {"hidden_size": 128}]
)
def test_a_resolved_pruning_config_is_itself_a_config(values: dict):
    config = PruneConfig(**values)
    assert validate(PruneConfig, config.model_dump(mode="json"), "test") == config


@pytest.mark.parametrize("config", [(QuantizeConfig, "w8a8"), (RecoverConfig, "recover-awq"), (PipelineConfig, "pipeline")])
@pytest.mark.parametrize("value", ["3", "[[1]]"])
def test_a_setting_of_another_kind_is_refused_in_a_line_wherever_it_is(config: tuple[type[Config], str], value: str):
    cls, file = config
    refused = []
    for key in settings_of(cls):
        try:
            load(cls, DEMO / f"{file}.toml", [f"{key}={value}"])
        except ConfigError as error:  # anything else would be a traceback
            refused += [key] if key.rpartition(".")[2] in str(error) else []
    assert len(refused) > 5


def settings_of(cls: type[Config]) -> list[str]:
    sections = {name: field.annotation for name, field in cls.model_fields.items() if hasattr(field.annotation, "model_fields")}
    return [*cls.model_fields, *(f"{name}.{key}" for name, section in sections.items() for key in section.model_fields)]


@pytest.mark.parametrize("setting", ["max_kl_nats=0.0175", "min_greedy_agreement=0.9", "num_rows=1", "top_k=1"])
def test_a_proof_that_would_pass_another_model_is_refused(setting: str):
    with pytest.raises(ConfigError, match=setting.split("=")[0]):
        load(ParityConfig, DEMO / "parity.toml", [setting])
