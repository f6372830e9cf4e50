"""A student cut along all three axes, healed by the teacher in its new tokens, served by vLLM: about a minute, of which imports are 20."""

from pathlib import Path

import pytest
import torch
from compress_run import make_run, some_rollouts, tiny_student
from transformers import AutoModelForCausalLM, AutoTokenizer

from supertiny.artifacts import open_artifact
from supertiny.compress.config import LatencyConfig, ParityConfig, PruneConfig
from supertiny.llm.chat import completion_token_ids, prompt_token_ids
from supertiny.llm.config import EngineConfig
from supertiny.records import Prompt, Rollout
from supertiny.rollout_table import read_rollouts

pytestmark = pytest.mark.slow

ENGINE = EngineConfig(max_model_len=128, max_num_seqs=8, kv_cache_gib=0.1)


@pytest.fixture(scope="module")
def run_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a student, and that student without a layer, a row of channels and tokens."""
    from supertiny.compress.prune import prune

    root = tmp_path_factory.mktemp("run")
    make_run(root, "sft", tiny_student(4, 512).to(torch.bfloat16), num_pairs=200)
    prune(PruneConfig(run_root=str(root), axis="vocab+depth+width", target_parameters_fraction=0.55, tolerance_fraction=0.2))
    return root


def test_vllm_serves_a_cut_model_as_hugging_face_loads_it(run_root: Path):
    from supertiny.compress.parity import prove

    metrics = open_artifact("prune", str(run_root), "model").manifest.metrics
    assert (len(metrics["removed_layers"]), metrics["removed_channels_per_layer"], metrics["removed_tokens"]) == (1, 128, 128)
    config = ParityConfig(run_root=str(run_root), model="prune", rollouts="prune-rollouts", num_rows=8, engine=ENGINE)
    found = prove(config.model_copy(update={"max_kl_nats": 0.01, "min_greedy_agreement": 0.9})).manifest.metrics
    assert (found["verdict"], found["problems"]) == ("pass", [])


def test_vllm_serves_a_model_with_a_narrower_embedding_as_hugging_face_loads_it(tmp_path: Path):
    from supertiny.compress.parity import prove
    from supertiny.compress.prune import prune

    make_run(tmp_path, "rl", tiny_student(2, hidden_size=256).to(torch.bfloat16))
    model = prune(
        PruneConfig(run_root=str(tmp_path), student="rl", hidden_size=128, target_parameters_fraction=0.5, tolerance_fraction=0.2)
    )
    assert (model.manifest.metrics["removed_embedding_channels"], model.manifest.metrics["removed_heads"]) == (128, 2)
    config = ParityConfig(run_root=str(tmp_path), model="prune", num_rows=8, engine=ENGINE)
    found = prove(config.model_copy(update={"max_kl_nats": 0.01, "min_greedy_agreement": 0.9})).manifest.metrics  # untrained: near ties
    assert (found["verdict"], found["problems"]) == ("pass", [])


def test_a_speed_is_measured_alone_and_together(run_root: Path):
    from supertiny.compress.speed import measure_speed

    prompts = [Prompt(id=row.prompt.id, messages=row.prompt.messages) for row in some_rollouts(4)]
    speed = measure_speed(run_root / "prune", prompts, [], ENGINE, 16, (1, 8))
    assert set(speed.tokens_per_second) == {1, 8}
    assert speed.seconds_per_token > 0
    assert speed.tokens_per_second[8] > speed.tokens_per_second[1]


def test_a_student_is_cut_to_seconds_a_token_by_what_its_cuts_were_measured_to_take(run_root: Path):
    from supertiny.compress.latency import fit, read_latency
    from supertiny.compress.measure_latency import measure_latency
    from supertiny.compress.prune import plan
    from supertiny.compress.shapes import Shape

    made = measure_latency(LatencyConfig(run_root=str(run_root), rounds=1, max_tokens=8, engine=ENGINE))
    latency = read_latency(made)
    sizes = [(each.vocab_size, each.num_hidden_layers, each.intermediate_size) for each in latency.measured]
    assert sizes == [(512, 4, 256), (384, 4, 256), (512, 2, 256), (512, 4, 128), (384, 2, 128)]
    assert all(each.seconds_per_token > 0 for each in latency.measured)
    shape = Shape(**latency.student)
    config = PruneConfig(axis="depth", target_seconds_per_token=0.0031)
    # this machine's seconds may be its neighbours' noise
    quiet = [each.model_copy(update={"seconds_per_token": 0.001 * each.num_hidden_layers}) for each in latency.measured]
    assert plan(config, run_root / "sft", run_root / "rollouts", fit(shape, quiet)).shape.num_hidden_layers == 3


def nats_a_token(student: Path, rows: list[Rollout]) -> float:
    """What the tokens of the rows' completions cost a student, on average."""
    tokenizer, model = AutoTokenizer.from_pretrained(student), AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
    total, tokens = 0.0, 0
    for row in rows:
        prompt = prompt_token_ids(tokenizer, row.prompt.messages, row.tools)
        completion = torch.tensor(completion_token_ids(tokenizer, row.completion.text))
        with torch.inference_mode():
            logits_TV = model(input_ids=torch.cat([torch.tensor(prompt), completion])[None]).logits[0, len(prompt) - 1 : -1]
        total += torch.nn.functional.cross_entropy(logits_TV, completion, reduction="sum").item()
        tokens += len(completion)
    return total / tokens


@pytest.mark.ray
def test_a_student_with_a_cut_vocabulary_is_healed_with_what_the_teacher_says_in_its_tokens(run_root: Path, local_ray: None):
    from supertiny.train.config import DistillConfig
    from supertiny.train.distill import distill

    rows = read_rollouts(run_root / "prune-rollouts")
    kept = [position for row in rows if row.completion.top_k for position in row.completion.top_k.logprobs]
    assert any(logprobs[-1] == float("-inf") for logprobs in kept)  # of a dropped token
    config = {
        "name": "heal",
        "student": "prune",
        "rollouts": "prune-rollouts",
        "num_workers": 1,
        "batch": 8,
        "losses": {"forward_kl": 1.0, "tail_penalty": 1.0},
    }
    healed = distill(DistillConfig.model_validate({**config, "run_root": str(run_root), "trackers": (), "learning_rate": 1e-3}))
    assert healed.manifest.metrics["loss_last"] < healed.manifest.metrics["loss_first"]
    assert nats_a_token(healed.path, rows[:8]) < 0.8 * nats_a_token(run_root / "prune", rows[:8])
    assert (healed.path / "tokenizer.json").read_bytes() == (run_root / "prune" / "tokenizer.json").read_bytes()
