"""A student cut along all three axes, healed with rollouts in its new tokens, served by vLLM: about 40 s, of which imports are 20."""

from pathlib import Path

import pytest
import torch
from compress_run import make_run, some_rollouts, tiny_student

from supertiny.artifacts import open_artifact
from supertiny.compress.config import ParityConfig, PruneConfig
from supertiny.llm.config import EngineConfig
from supertiny.records import Prompt

pytestmark = pytest.mark.slow

ENGINE = EngineConfig(max_model_len=128, max_num_seqs=8, kv_cache_gib=0.1)


@pytest.fixture(scope="module")
def run_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a student, and that student without a layer, a row of channels and tokens."""
    from supertiny.compress.prune import prune

    root = tmp_path_factory.mktemp("run")
    make_run(root, "rl", tiny_student(4, 512).to(torch.bfloat16))
    prune(PruneConfig(run_root=str(root), axis="vocab+depth+width", target_parameters_fraction=0.55, tolerance_fraction=0.2))
    return root


def test_vllm_serves_a_cut_model_as_hugging_face_loads_it(run_root: Path):
    from supertiny.compress.parity import prove

    metrics = open_artifact("prune", str(run_root), "model").manifest.metrics
    assert (len(metrics["removed_layers"]), metrics["removed_channels_per_layer"], metrics["removed_tokens"]) == (1, 128, 128)
    config = ParityConfig(run_root=str(run_root), model="prune", rollouts="prune-rollouts", num_rows=8, engine=ENGINE)
    found = prove(config.model_copy(update={"max_kl_nats": 0.01, "min_greedy_agreement": 0.9})).manifest.metrics
    assert (found["verdict"], found["problems"]) == ("pass", [])


def test_a_speed_is_measured_alone_and_together(run_root: Path):
    from supertiny.compress.speed import measure_speed

    prompts = [Prompt(id=row.prompt.id, messages=row.prompt.messages) for row in some_rollouts(4)]
    speed = measure_speed(run_root / "prune", prompts, [], ENGINE, 16, (1, 8))
    assert set(speed.tokens_per_second) == {1, 8}
    assert speed.seconds_per_token > 0
    assert speed.tokens_per_second[8] > speed.tokens_per_second[1]


@pytest.mark.ray
def test_a_student_with_a_cut_vocabulary_is_healed_with_its_own_rollouts(run_root: Path, local_ray: None):
    from supertiny.train.config import DistillConfig
    from supertiny.train.distill import distill

    config = {
        "name": "heal",
        "student": "prune",
        "rollouts": "prune-rollouts",
        "num_workers": 1,
        "batch": 8,
        "losses": {"cross_entropy": 1.0},
    }
    healed = distill(DistillConfig.model_validate({**config, "run_root": str(run_root), "trackers": (), "learning_rate": 1e-3}))
    assert healed.manifest.metrics["loss_last"] < healed.manifest.metrics["loss_first"]
    assert (healed.path / "tokenizer.json").read_bytes() == (run_root / "prune" / "tokenizer.json").read_bytes()
