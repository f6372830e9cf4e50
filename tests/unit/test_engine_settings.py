"""What an engine's settings ask of a model's folder, an adapter's folder and a machine, before vLLM is imported."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from supertiny.config import validate
from supertiny.errors import ConfigError, MissingInput, PlanTooBig
from supertiny.llm.config import EngineConfig
from supertiny.llm.devices import check_gpus, describe_devices, prepare_cpus
from supertiny.llm.folders import check_folders, lora_rank
from supertiny.llm.vllm import VllmLlm, engine_arguments

ADAPTER = {"peft_type": "LORA", "r": 12, "lora_alpha": 24, "target_modules": ["q_proj"], "bias": "none", "use_dora": False}


def make_model(folder: Path) -> Path:
    """A folder with the shape of Qwen2.5-0.5B and nothing else."""
    (folder / "config.json").write_text(json.dumps({"num_attention_heads": 14, "num_key_value_heads": 2, "num_hidden_layers": 24}))
    return folder


def make_adapter(folder: Path, **values: object) -> str:
    """An adapter's folder without its weights."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER | values))
    return str(folder)


def engine(**values: object) -> EngineConfig:
    return validate(EngineConfig, values, "test")


def test_attention_heads_that_cannot_be_split_evenly_are_refused_before_vllm_is_imported(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    with pytest.raises(ConfigError, match="tensor_parallel_size 4 does not divide the 14 attention heads"):
        VllmLlm(model, engine(tensor_parallel_size=4))
    with pytest.raises(ConfigError, match="tensor_parallel_size 7 and the 2 key-value heads"):
        check_folders(model, engine(tensor_parallel_size=7))
    check_folders(model, engine(tensor_parallel_size=14))  # a key-value head for every seven
    check_folders(model, engine(tensor_parallel_size=2))


def test_more_groups_of_layers_than_layers_are_refused(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    with pytest.raises(ConfigError, match="pipeline_parallel_size 25 is over the 24 layers"):
        check_folders(model, engine(pipeline_parallel_size=25))
    check_folders(model, engine(pipeline_parallel_size=24))


def test_an_adapter_that_is_not_there_is_missed_before_vllm_is_imported(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match=r"no adapter_config\.json there"):
        VllmLlm(make_model(tmp_path), engine(adapter=str(tmp_path / "nowhere")))


@pytest.mark.parametrize(("rank", "room"), [(1, 1), (12, 16), (16, 16), (257, 320), (512, 512)])
def test_room_is_made_for_the_adapters_own_rank_or_the_next_one_that_vllm_has(tmp_path: Path, rank: int, room: int) -> None:
    assert lora_rank(Path(make_adapter(tmp_path / "adapter", r=rank))) == room


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"use_dora": True, "bias": "all"}, "no adapter with use_dora and bias; merge it"),
        ({"modules_to_save": ["lm_head"]}, "no adapter with modules_to_save"),
        ({"peft_type": "IA3"}, "of type IA3"),
        ({"r": 513}, "rank 513, vLLM takes at most 512"),
    ],
)
def test_an_adapter_that_vllm_cannot_run_is_refused(tmp_path: Path, values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        lora_rank(Path(make_adapter(tmp_path / "adapter", **values)))


def test_an_adapter_makes_vllm_ready_for_one_and_none_leaves_it_out(tmp_path: Path) -> None:
    with_one = engine_arguments(engine(adapter=make_adapter(tmp_path / "adapter")))
    assert {name: with_one[name] for name in ("enable_lora", "max_loras", "max_lora_rank")} == {
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": 16,
    }
    assert "enable_lora" not in engine_arguments(engine())


def test_workers_of_one_engine_are_processes_of_its_own_node() -> None:
    split = engine_arguments(engine(tensor_parallel_size=2, pipeline_parallel_size=3))
    assert (split["tensor_parallel_size"], split["pipeline_parallel_size"], split["distributed_executor_backend"]) == (2, 3, "mp")
    assert engine_arguments(engine())["distributed_executor_backend"] is None


def test_more_workers_than_cores_are_refused_where_there_is_no_gpu() -> None:
    with pytest.raises(PlanTooBig, match=r"6 workers \(engine.tensor_parallel_size 6 x .*pipeline_parallel_size 1\).*this machine has 4"):
        prepare_cpus(engine(tensor_parallel_size=6), num_cpus=4)
    prepare_cpus(engine(tensor_parallel_size=2), num_cpus=2)


def test_more_workers_than_gpus_are_refused() -> None:
    with pytest.raises(PlanTooBig, match=r"2 workers .* as many GPUs of one node; visible here: 1"):
        check_gpus(engine(pipeline_parallel_size=2), num_gpus=1)
    check_gpus(engine(pipeline_parallel_size=2), num_gpus=2)


def test_a_setting_for_the_other_kind_of_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match="gpu_memory_utilization is for GPUs"):
        prepare_cpus(engine(gpu_memory_utilization=0.4), num_cpus=2)
    with pytest.raises(ConfigError, match=r"pipeline_parallel_size is for GPUs .* split by tensor_parallel_size"):
        prepare_cpus(engine(pipeline_parallel_size=2), num_cpus=2)
    with pytest.raises(ConfigError, match="num_threads is for CPUs"):
        check_gpus(engine(num_threads=1), num_gpus=1)


def test_the_threads_of_an_engine_of_several_processes_reach_them_through_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "auto")
    prepare_cpus(engine(num_threads=1), num_cpus=2)
    assert os.environ["OMP_NUM_THREADS"] == "5"
    prepare_cpus(engine(num_threads=1, tensor_parallel_size=2), num_cpus=2)
    assert (os.environ["OMP_NUM_THREADS"], os.environ["VLLM_CPU_OMP_THREADS_BIND"]) == ("1", "nobind")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what an engine has on a CPU")
def test_what_an_engine_has_is_its_own_threads_and_not_the_machine_s_cores() -> None:
    assert describe_devices(engine(num_threads=1)) == "a CPU, 1 thread"
    assert describe_devices(engine(num_threads=3, tensor_parallel_size=2)) == "a CPU, 2 x 3 threads"
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert describe_devices(engine()) == "a CPU, 2 threads"
    finally:
        torch.set_num_threads(before)


def test_vllm_knows_every_word_that_we_use_for_it(tmp_path: Path) -> None:
    import ast
    from importlib.util import find_spec

    spec = find_spec("vllm")  # found, not imported: that takes 11 s
    assert spec is not None
    assert spec.origin is not None
    module = ast.parse((Path(spec.origin).parent / "engine" / "arg_utils.py").read_text())
    arguments = next(node for node in module.body if isinstance(node, ast.ClassDef) and node.name == "EngineArgs")
    known = {node.target.id for node in arguments.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}
    ours = engine_arguments(engine(adapter=make_adapter(tmp_path / "adapter"), gpu_memory_utilization=0.5))
    assert set(ours) - known == set()
