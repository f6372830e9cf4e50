"""The runs on real models: what they ask for is there, in the groups of machines that they are for."""

from __future__ import annotations

from typing import Any

import pytest
from kubernetes import built, cluster_spec, one
from manifests import ROOT, VIRTUAL_MACHINES, Group, groups_of, nodes_for

from supertiny.compress.config import LatencyConfig, ParityConfig
from supertiny.config import PlaceConfig, PlacedConfig, load
from supertiny.cost import machine_price
from supertiny.errors import PlanTooBig
from supertiny.pipeline.config import PipelineConfig
from supertiny.pipeline.pareto_config import ParetoConfig
from supertiny.rollout.fit import engines_that_fit

QWEN = ROOT / "jobs" / "configs" / "qwen"
RUNS = sorted(path.parent.name for path in QWEN.glob("*/pipeline.toml"))
WEIGHTS_GB = 65.5
"""Of Qwen3-32B in bfloat16: 32.8 thousand million parameters."""
CLOUDS = (*VIRTUAL_MACHINES, "kuberay")


def chain(run: str) -> PipelineConfig:
    return load(PipelineConfig, QWEN / run / "pipeline.toml")


def groups(cloud: str) -> list[Group]:
    """The groups of one way of having a cluster."""
    if cloud != "kuberay":
        return groups_of(cloud)
    nodes = cluster_spec(one(built("gpu/cluster"), "RayCluster"))["workerGroupSpecs"]
    return [Group(each["groupName"], _resources(each), each["labels"], each["maxReplicas"], _container(each)["image"]) for each in nodes]


def test_there_are_runs_for_one_gpu_for_eight_and_for_a_cluster() -> None:
    assert RUNS == ["cluster", "eight-gpus", "one-gpu"]


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_teacher_s_engines_have_their_nodes(cloud: str) -> None:
    rollout = chain("cluster").rollout
    nodes = nodes_for(groups(cloud), rollout.layout.labels)
    assert engines_that_fit(rollout.layout, nodes) == rollout.layout.num_engines[1]
    assert len(nodes) == rollout.cost.num_machines


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_training_workers_of_every_stage_fit_on_one_node_of_theirs(cloud: str) -> None:
    config = chain("cluster")
    for stage in (*config.transfers, *config.healings):
        nodes = nodes_for(groups(cloud), stage.labels)
        assert nodes
        assert max(node["GPU"] for node in nodes) >= stage.num_workers
        assert max(node["CPU"] for node in nodes) >= stage.num_workers


@pytest.mark.parametrize("cloud", CLOUDS)
def test_every_evaluation_has_a_node(cloud: str) -> None:
    config = chain("cluster")
    for section in (config.evaluate, config.evaluate_teacher):
        assert max(node["GPU"] for node in nodes_for(groups(cloud), section.labels)) >= section.num_gpus


@pytest.mark.parametrize(
    ("section", "image"), [("prune", "cpu"), *((name, "gpu-compress") for name in ("awq", "w8a8", "fp8")), ("parity", "gpu")]
)
@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_stage_of_one_process_has_a_node_with_the_image_for_it(cloud: str, section: str, image: str) -> None:
    place = getattr(chain("cluster"), section).place
    fitting = [group for group in groups(cloud) if place.labels.items() <= group.labels.items()]
    assert {group.image.rpartition(":")[2] for group in fitting} == {image}
    nodes = nodes_for(groups(cloud), place.labels)
    assert any(node["CPU"] >= place.num_cpus and node.get("GPU", 0) >= place.num_gpus for node in nodes)


@pytest.mark.parametrize(
    "stage", [("latency", LatencyConfig), ("parity", ParityConfig), ("pareto", ParetoConfig)], ids=lambda stage: stage[0]
)
def test_speeds_and_proofs_are_of_the_machine_and_the_engine_that_evaluations_run_on(stage: tuple[str, type[PlacedConfig]]) -> None:
    name, kind = stage
    config, evaluate = load(kind, QWEN / "cluster" / f"{name}.toml"), chain("cluster").evaluate
    assert config.engine == evaluate.engine
    assert config.place == PlaceConfig(num_gpus=evaluate.num_gpus, labels=evaluate.labels)


def test_the_single_proof_scores_completions_in_the_tokens_that_the_chain_s_candidates_have() -> None:
    config = chain("cluster")
    assert load(ParityConfig, QWEN / "cluster" / "parity.toml").rollouts == config.w8a8.rollouts == "prune-rollouts"
    assert config.prune.axis == "vocab"


@pytest.mark.parametrize(("run", "gpus"), [("one-gpu", 1), ("eight-gpus", 8)])
def test_a_run_on_one_machine_uses_all_of_its_gpus_and_no_more(run: str, gpus: int) -> None:
    config = chain(run)
    machine = {"CPU": 192.0 if gpus == 8 else 26.0, "GPU": float(gpus)}
    most = config.rollout.layout.num_engines[1]
    assert engines_that_fit(config.rollout.layout, [machine]) == most == gpus // config.rollout.layout.gpus_per_engine
    with pytest.raises(PlanTooBig):
        engines_that_fit(config.rollout.layout.model_copy(update={"num_engines": (most + 1, most + 1)}), [machine])
    assert {stage.num_workers for stage in (*config.transfers, *config.healings)} == {gpus}
    assert {stage.device for stage in (*config.transfers, *config.healings)} == {"gpu"}


@pytest.mark.parametrize("run", RUNS)
def test_formats_are_chosen_by_measurement_with_that_of_the_gpu_and_bfloat16_among_them(run: str) -> None:
    config = chain(run)
    assert config.candidates == ("heal", "awq", "w8a8", "fp8")
    assert config.fp8.place is not None
    assert config.fp8.place.num_gpus == 1


@pytest.mark.parametrize("run", RUNS)
def test_the_teacher_s_weights_and_cache_fit_into_80_gb(run: str) -> None:
    config = chain(run)
    for engine in (config.rollout.engine, config.evaluate_teacher.engine):
        cache_gb = engine.kv_cache_gib * 2**30 / 1e9
        assert WEIGHTS_GB / engine.num_workers + cache_gb < 0.92 * 85.9  # vLLM's share of 80 GiB


@pytest.mark.parametrize("run", RUNS)
def test_an_engine_never_waits_for_rows(run: str) -> None:
    config = chain(run).rollout
    assert config.layout.blocks_in_flight * config.layout.block_rows > config.engine.max_num_seqs


@pytest.mark.parametrize("run", RUNS)
def test_every_machine_has_a_price(run: str) -> None:
    config = chain(run)
    for machine in (config.rollout.cost.machine, config.evaluate.machine, config.evaluate_teacher.machine):
        assert machine_price(machine).usd_per_hour > 0


@pytest.mark.parametrize("run", RUNS)
def test_every_number_and_switch_of_a_run_has_its_reason(run: str) -> None:
    lines = [line for path in sorted((QWEN / run).glob("*.toml")) for line in path.read_text().splitlines()]
    settings = [line.partition(" = ")[::2] for line in lines if " = " in line and not line.startswith("#")]
    numbers = {key for key, value in settings if value[0] not in "\"'{" and '["' not in value}
    reasoned = {key for key, value in settings if " # " in value}
    assert len(numbers) > 30
    assert numbers - reasoned == set()


def _resources(group: dict[str, Any]) -> dict[str, float]:
    limits = _container(group)["resources"]["limits"]
    return {"CPU": float(limits["cpu"]), "GPU": float(limits.get("nvidia.com/gpu", 0))}


def _container(group: dict[str, Any]) -> dict[str, Any]:
    container: dict[str, Any] = group["template"]["spec"]["containers"][0]
    return container
