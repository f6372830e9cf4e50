"""What no shape, tokenizer or machine allows is said before the chain's first stage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from supertiny.artifacts import make, resolve
from supertiny.compress.shapes import read_shape
from supertiny.config import StageConfig, load
from supertiny.errors import ConfigError, MissingInput
from supertiny.pipeline.check_compression import check_compression, origin
from supertiny.pipeline.config import PipelineConfig
from supertiny.train.pretrain_config import ModelSize

DEMO = "jobs/configs/demo/pipeline.toml"
PRETRAINED = ["base=base", "pretrain_base.role=base", "pretrain_base.name=base"]


@pytest.fixture(autouse=True)
def _in_the_checkout(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout)


def chain(*settings: str) -> PipelineConfig:
    return load(PipelineConfig, DEMO, settings)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (["prune.target_parameters_fraction=0.01"], "no width reaches it; the nearest is intermediate_size 128"),
        (["prune.axis=depth", "prune.target_parameters_fraction=0.01"], "the nearest is num_hidden_layers 1"),
        (["prune.hidden_size=192"], "hidden_size 192: possible are multiples of 128 below the student's 256"),
        (["prune.hidden_size=128"], "no width reaches it; the nearest is hidden_size 128, intermediate_size 768"),
        ([*PRETRAINED, "prune.hidden_size=192"], "hidden_size 192: possible are multiples of 128"),
        (["prune.axis=vocab"], "tokens have to stay|no vocab reaches it"),
        (["prune.tensor_parallel_size=7"], "tensor_parallel_size 7: 7 workers do not divide"),
        ([*PRETRAINED, "prune.tensor_parallel_size=7"], "tensor_parallel_size 7: 7 workers do not divide"),
        (['candidates=["fp8"]', "fp8.place.num_cpus=1"], "fp8_dynamic is for GPUs and this machine has none"),
        (['candidates=["fp8"]', "fp8.place.num_gpus=1"], r"candidate fp8: format fp8_dynamic is for GPUs and evaluate\.num_gpus is 0"),
        ([*PRETRAINED, "prune.target_parameters_fraction=0.01"], "the nearest is intermediate_size 128"),
        ([*PRETRAINED, "pretrain_base.model.hidden_size=192", "pretrain_base.model.num_key_value_heads=1"], "128 does not divide"),
    ],
)
def test_what_no_shape_or_machine_allows_is_refused(settings: Sequence[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        check_compression(chain(*settings))


def test_an_architecture_that_cannot_be_cut_is_refused_by_name(tmp_path: Path) -> None:
    def build(folder: Path) -> dict[str, Any]:
        (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}), encoding="utf-8")
        return {}

    make(StageConfig(name="base", run_root=str(tmp_path)), "model", {}, build)
    with pytest.raises(ConfigError, match="model_type 'gpt2'; supported: llama, qwen2, qwen3"):
        check_compression(chain(f"run_root={tmp_path}", "base=base"))


def test_latencies_that_a_target_in_seconds_needs_are_looked_for(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="latency"):
        check_compression(chain(f"run_root={tmp_path}", "prune.target_seconds_per_token=0.001"))


@pytest.mark.parametrize(
    "settings",
    [
        [],
        PRETRAINED,
        ["prune.axis=depth"],
        ["prune.hidden_size=128", "prune.target_parameters_fraction=0.5"],
        ['candidates=["fp8"]', "fp8.place.num_gpus=1", "evaluate.num_gpus=1"],
    ],
)
def test_what_can_be_done_passes(settings: Sequence[str]) -> None:
    check_compression(chain(*settings))


def test_the_tokens_that_have_to_stay_are_those_of_the_models_tokenizer() -> None:
    bytes_alone = ["prune.axis=vocab", "prune.vocab_size=256", "prune.target_parameters_fraction=0.97"]
    check_compression(chain(*bytes_alone, *PRETRAINED))
    with pytest.raises(ConfigError, match="no vocab reaches it"):
        check_compression(chain(*bytes_alone))


def test_a_base_that_is_the_teacher_which_the_chain_makes_is_not_looked_for() -> None:
    check_compression(chain("teacher=teacher", "base=teacher", "pretrain_teacher.role=teacher", "pretrain_teacher.name=teacher"))


def test_a_token_without_a_row_of_the_embedding_is_refused_before_the_first_rollout(tmp_path: Path) -> None:
    def build(folder: Path) -> dict[str, Any]:
        shutil.copytree(base := resolve(chain().base, "."), folder, dirs_exist_ok=True)
        values = json.loads((base / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps({**values, "vocab_size": values["vocab_size"] - 4}), encoding="utf-8")
        return {}

    make(StageConfig(name="base", run_root=str(tmp_path)), "model", {}, build)
    with pytest.raises(ConfigError, match="the tokenizer has 2 tokens beyond the 1,020 rows of the embedding"):
        check_compression(chain(f"run_root={tmp_path}", "base=base", "prune.axis=vocab"))


def test_a_target_in_bytes_counts_what_training_writes(tmp_path: Path) -> None:
    def build(folder: Path) -> dict[str, Any]:
        values = {**json.loads((resolve(chain().base, ".") / "config.json").read_text(encoding="utf-8")), "dtype": "float32"}
        (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
        return {}

    make(StageConfig(name="base", run_root=str(tmp_path)), "model", {}, build)
    settings = [f"run_root={tmp_path}", "base=base", "prune.target_bytes=5500000"]
    check_compression(chain(*settings))
    with pytest.raises(ConfigError, match="stays float32"):
        check_compression(chain(*settings, "prune.student=base", "recover.baseline=eval-base"))


def test_the_shape_is_that_of_the_model_which_the_curriculum_starts_from() -> None:
    assert origin(chain("base=/models/small")) == "/models/small"
    assert origin(chain("rl.student=/models/other")) == "/models/other"
    assert origin(chain("prune.student=/models/third", "recover.baseline=../other/eval-third")) == "/models/third"


def test_a_pretrained_bases_shape_is_that_of_the_model_that_is_made() -> None:
    from supertiny.train.pretrain import new_model

    class Tokenizer:
        eos_token_id, pad_token_id = 1, 0

    size = ModelSize(vocabulary_size=512, hidden_size=128, feed_forward_size=256, num_layers=2, num_key_value_heads=1)
    assert read_shape({"model_type": "qwen2", **size.sizes()}).num_parameters == new_model(size, Tokenizer()).num_parameters()
