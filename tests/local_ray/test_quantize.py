"""Every format that runs on a CPU through the stage itself, then through vLLM: about 30 s, of which imports are 20."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compress_run import make_run, some_rollouts, tiny_student
from safetensors import safe_open

from supertiny.artifacts import Artifact, open_artifact
from supertiny.compress.config import ParityConfig, QuantizeConfig
from supertiny.compress.export import weight_bytes
from supertiny.compress.shapes import read_shape
from supertiny.errors import ConfigError
from supertiny.formats import Format
from supertiny.llm.config import EngineConfig
from supertiny.train.fake_quantization import round_layers
from supertiny.train.quantization_config import QuantizationAwareSettings

ENGINE = EngineConfig(max_model_len=128, max_num_seqs=8, kv_cache_gib=0.1)
pytestmark = pytest.mark.slow

GPU_LOCK = Path(__file__).parents[2] / "requirements" / "gpu.lock"
ANSWERS = """
import asyncio, json, sys
from importlib.metadata import version
from supertiny.llm.base import Sampling
from supertiny.llm.config import EngineConfig
from supertiny.llm.vllm import VllmLlm

def answer(folder):
    llm = VllmLlm(folder, EngineConfig.model_validate_json(sys.argv[1]))
    try:
        message = {"role": "user", "content": "stop the music"}
        return asyncio.run(llm.complete([message], sampling=Sampling(max_tokens=24)))[0].text
    finally:
        llm.close()

print(json.dumps([version("compressed-tensors"), [answer(folder) for folder in sys.argv[2:]]]))
"""
FORMATS = {"awq": "awq_w4a16", "gptq": "gptq_w4a16", "w8a8": "w8a8"}


@pytest.fixture(scope="module")
def run_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a student, rollouts and the quantized students."""
    from supertiny.compress.quantize import quantize

    root = tmp_path_factory.mktemp("run")
    make_run(root, "heal", tiny_student(num_layers=2).to(torch.bfloat16))
    for name, form in FORMATS.items():
        quantize(QuantizeConfig(run_root=str(root), name=name, format=form, num_rows=24))
    return root


@pytest.fixture(params=FORMATS)
def quantized(request: pytest.FixtureRequest, run_root: Path) -> Artifact:
    return open_artifact(request.param, str(run_root), "model")


def test_the_weights_shrink_but_for_the_embedding(run_root: Path):
    embedding, student = 2 * 384 * 128, weight_bytes(run_root / "heal")
    size = {name: open_artifact(name, str(run_root), "model").manifest.metrics["bytes"] for name in FORMATS}
    assert size["w8a8"] - embedding < 0.6 * (student - embedding)
    assert size["awq"] - embedding < 0.4 * (student - embedding)
    assert size["gptq"] < size["awq"]


def test_the_tensors_take_the_bytes_that_the_size_solver_counts(quantized: Artifact, run_root: Path):
    shape = read_shape(json.loads((run_root / "heal" / "config.json").read_text()))
    assert tensor_bytes(quantized.path) == shape.num_bytes(quantized.manifest.metrics["format"])


def test_eight_bit_floats_are_written_on_a_cpu_too_and_take_the_bytes_that_the_size_solver_counts(run_root: Path, tmp_path: Path):
    """The stage refuses the format without a GPU, since nothing here could serve it."""
    from supertiny.compress.quantize import recipe, write_quantized

    write_quantized(run_root / "heal", tmp_path, recipe(QuantizeConfig(format="fp8_dynamic")), [])
    assert tensor_bytes(tmp_path) == read_shape(json.loads((run_root / "heal" / "config.json").read_text())).num_bytes("fp8_dynamic")


def tensor_bytes(folder: Path) -> int:
    """Of all weights."""
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        return sum(weights.get_tensor(name).nbytes for name in weights.keys())  # noqa: SIM118 - not a dict


@pytest.mark.network
def test_what_we_write_loads_with_the_compressed_tensors_of_the_gpu_environment(run_root: Path, tmp_path: Path):
    """vLLM pins an older release than LLM Compressor writes with; the GPU image has vLLM's."""
    pin = next(line for line in GPU_LOCK.read_text().splitlines() if line.startswith("compressed-tensors=="))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "pinned"), pin]
    if (installed := subprocess.run(command, capture_output=True, text=True)).returncode:
        said = installed.stderr.strip().rpartition("\n")[2]
        pytest.skip(f"no {pin} to be had here, so that files for the GPU image are NOT CHECKED: {said}")
    ours, theirs = (answers(run_root, path) for path in ("", f"{tmp_path / 'pinned'}"))
    assert [ours[0], theirs[0]] == ["0.19.0", pin.removeprefix("compressed-tensors==")]
    assert ours[1] == theirs[1]
    assert all(ours[1])


def answers(run_root: Path, path: str) -> tuple[str, list[str]]:
    """The version of compressed-tensors that a fresh process found, and what every format answers there."""
    command = [sys.executable, "-c", ANSWERS, ENGINE.model_dump_json(), *(str(run_root / name) for name in FORMATS)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(each for each in (path, str(Path(__file__).parents[2] / "platform")) if each),
    }
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    version, texts = json.loads(ran.stdout.splitlines()[-1])
    return version, texts


def test_a_format_for_gpus_is_refused_on_a_cpu(run_root: Path):
    from supertiny.compress.quantize import quantize
    from supertiny.formats import check_device

    check_device("fp8_dynamic", has_gpu=True)
    with pytest.raises(ConfigError, match="format fp8_dynamic is for GPUs and this machine has none"):
        check_device("fp8_dynamic", has_gpu=False)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="fp8_dynamic is for GPUs"):
            quantize(QuantizeConfig(run_root=str(run_root), name="fp8", format="fp8_dynamic"))


def test_the_parameters_are_those_of_the_student(quantized: Artifact, run_root: Path):
    assert quantized.manifest.metrics["parameters"] == pytest.approx(weight_bytes(run_root / "heal") / 2, rel=0.01)


def test_the_distributions_hardly_move(quantized: Artifact):
    limit = {"awq_w4a16": 0.15, "gptq_w4a16": 0.15, "w8a8": 0.002}[quantized.manifest.metrics["format"]]
    assert 0 < quantized.manifest.metrics["kl_nats"] < limit


def test_what_came_with_the_student_is_unchanged(quantized: Artifact, run_root: Path):
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (quantized.path / name).read_bytes() == (run_root / "heal" / name).read_bytes()


def test_outliers_of_the_activations_are_smoothed_away(tmp_path: Path):
    """A channel 300 times the others leaves those of its token a few of 8 bits, unless its weights take what it has too much."""
    from supertiny.compress.quantize import quantize

    student = tiny_student(num_layers=2)
    with torch.no_grad():
        for layer in student.model.layers:
            for norm, readers in ((layer.input_layernorm, layer.self_attn), (layer.post_attention_layernorm, layer.mlp)):
                norm.weight[7] *= 300
                for name in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"):
                    if hasattr(readers, name):
                        getattr(readers, name).weight[:, 7] /= 300
    make_run(tmp_path, "heal", student.to(torch.bfloat16))
    ways = {"plain": None, "smooth": 0.5}
    made = {name: QuantizeConfig(run_root=str(tmp_path), name=name, format="w8a8", smoothing_strength=way) for name, way in ways.items()}
    moved = {name: quantize(config).manifest.metrics["kl_nats"] for name, config in made.items()}
    assert moved["smooth"] < 0.2 * moved["plain"]


@pytest.mark.parametrize("form", FORMATS.values())
def test_to_nearest_is_the_rounding_that_a_student_is_trained_through(form: Format, run_root: Path):
    from transformers import AutoModelForCausalLM

    from supertiny.compress.quantize import quantize

    config = QuantizeConfig.model_validate({"run_root": str(run_root), "name": f"nearest-{form}", "format": form, "rounding": "nearest"})
    written = AutoModelForCausalLM.from_pretrained(quantize(config).path, dtype=torch.bfloat16)
    trained = AutoModelForCausalLM.from_pretrained(run_root / "heal", dtype=torch.bfloat16)
    tokens = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        before = trained(tokens).logits
        round_layers(trained, QuantizationAwareSettings.model_validate({"format": form}))
        moved, apart = (trained(tokens).logits - before).norm(), (trained(tokens).logits - written(tokens).logits).norm()
    assert apart < 0.05 * moved


def test_groups_that_no_worker_has_whole_are_refused(run_root: Path):
    from supertiny.compress.quantize import quantize

    with pytest.raises(ConfigError, match="group_size 128 does not divide the student's num_attention_heads x head_dim 128 over 2 workers"):
        quantize(QuantizeConfig(run_root=str(run_root), name="split", format="awq_w4a16", tensor_parallel_size=2))


def test_a_quantized_student_is_not_quantized_again(run_root: Path):
    from supertiny.compress.quantize import quantize

    with pytest.raises(ConfigError, match="quantized already"):
        quantize(QuantizeConfig(run_root=str(run_root), name="twice", student="awq"))
    assert not (run_root / "twice").exists()


def test_vllm_serves_the_model_that_hugging_face_loads(quantized: Artifact, run_root: Path):
    from supertiny.compress.parity import prove

    config = ParityConfig(
        run_root=str(run_root), name=f"parity-{quantized.path.name}", model=quantized.path.name, num_rows=8, engine=ENGINE
    )
    metrics = prove(config.model_copy(update={"max_kl_nats": 0.01, "min_greedy_agreement": 0.9})).manifest.metrics
    assert (metrics["verdict"], metrics["problems"]) == ("pass", [])
    assert metrics["positions"] > 50


def test_a_proof_finds_weights_that_were_changed(run_root: Path):
    from supertiny.compress.parity import gap_of, score_all

    rows = some_rollouts(5)
    served = score_all(run_root / "awq", rows, 20, ENGINE)
    ours, other = gap_of(run_root / "awq", rows, served)[0], gap_of(run_root / "w8a8", rows, served)[0]
    assert other.kl_nats > 3 * ours.kl_nats
