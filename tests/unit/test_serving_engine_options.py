"""What vLLM is told of a served engine, and what is refused before it is imported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from supertiny.errors import ConfigError, MissingInput
from supertiny.serving.config import ArmConfig, ServeConfig, SpeculationConfig
from supertiny.serving.engine_options import engine_arguments
from supertiny.serving.sources import model_paths


def adapter(folder: Path, rank: int) -> str:
    """A folder that says it is an adapter."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank}))
    return str(folder)


def test_an_arm_of_defaults_caches_prompts_in_small_blocks_and_guesses_nothing() -> None:
    assert engine_arguments(ArmConfig()) == {
        "block_size": 32,
        "max_model_len": None,
        "max_num_seqs": 64,
        "enable_prefix_caching": True,
        "enable_chunked_prefill": True,
        "enforce_eager": True,
    }


@pytest.mark.parametrize(
    ("settings", "argument", "value"),
    [
        ({"prefix_caching": False}, "enable_prefix_caching", False),
        ({"chunked_prefill": False}, "enable_chunked_prefill", False),
        ({"max_num_batched_tokens": 256}, "max_num_batched_tokens", 256),
        ({"block_size": 64}, "block_size", 64),
        (
            {"speculation": SpeculationConfig(method="ngram", num_tokens=3, longest_match=5)},
            "speculative_config",
            {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 5},
        ),
    ],
)
def test_a_setting_of_an_arm_is_an_argument_of_its_engine(settings: dict[str, object], argument: str, value: object) -> None:
    assert engine_arguments(ArmConfig(**settings))[argument] == value  # type: ignore[arg-type]


def test_an_arm_on_a_share_of_a_gpu_compiles_and_takes_that_share_of_its_memory() -> None:
    arguments = engine_arguments(ArmConfig(num_gpus=0.25, gpu_memory_utilization=0.22, kv_cache_gib=2))
    assert arguments["enforce_eager"] is False
    assert arguments["gpu_memory_utilization"] == 0.22
    assert arguments["kv_cache_memory_bytes"] == 2 * 2**30


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_gpus": 0.25}, "set gpu_memory_utilization to at most that"),
        ({"num_gpus": 0.25, "gpu_memory_utilization": 0.5}, "set gpu_memory_utilization to at most that"),
        ({"gpu_memory_utilization": 0.5}, "num_gpus is 0"),
    ],
)
def test_replicas_that_would_not_fit_on_their_gpu_are_refused(settings: dict[str, float], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ArmConfig(**settings)  # type: ignore[arg-type]


def test_suffix_speculation_without_its_package_is_refused_and_the_message_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r'needs the package arctic-inference.*or take "ngram"'):
        engine_arguments(ArmConfig(speculation=SpeculationConfig(method="suffix")))


def test_adapters_make_room_for_all_of_them_and_for_the_largest_rank(tmp_path: Path) -> None:
    adapters = {"de": adapter(tmp_path / "de", 4), "fr": adapter(tmp_path / "fr", 12)}
    arguments = engine_arguments(ArmConfig(adapters=adapters))
    assert (arguments["enable_lora"], arguments["max_loras"], arguments["max_lora_rank"]) == (True, 2, 16)


def test_an_adapter_that_is_not_there_is_said_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match=r"no adapter_config\.json"):
        model_paths(ServeConfig(student_arm=ArmConfig(adapters={"de": str(tmp_path)})))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"teacher_arm": {"adapters": {"de": "/x"}}}, "teacher_arm.adapters: the teacher pipeline asks for none"),
        ({"student_arm": {"adapters": {"de": "/x"}, "scripted": {}}}, "a scripted engine has no model to adapt"),
        ({"student_arm": {"adapters": {"De:": "/x"}}}, "should match pattern"),
        ({"student_arm": {"block_size": 20}}, "multiple of 16"),
        ({"student": None, "traffic_fraction": 0, "student_arm": {"adapters": {"de": "/x"}}}, "no student is served"),
    ],
)
def test_a_combination_that_cannot_be_is_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ServeConfig(**settings)  # type: ignore[arg-type]
