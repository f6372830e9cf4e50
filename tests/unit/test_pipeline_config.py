"""The chain's config: one section a stage, what they share written once, and the commands around it refusing what is wrong."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from evaluation_artifacts import publish_gate

from supertiny.artifacts import write_atomically
from supertiny.config import PlaceConfig, PlacedConfig, load
from supertiny.errors import ConfigError, MissingInput
from supertiny.pipeline.check import check_inputs, check_tasks
from supertiny.pipeline.config import RUN_CONFIG, PipelineConfig
from supertiny.pipeline.demo import decided
from supertiny.pipeline.serve import config_of_run

DEMO = "jobs/configs/demo/pipeline.toml"
SNIPS = "jobs/configs/snips/pipeline.toml"


@pytest.fixture(autouse=True)
def _in_the_checkout(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout)


def test_every_section_inherits_the_top_and_its_place_in_the_chain() -> None:
    config = load(PipelineConfig, DEMO, ["run_root=/runs/x", "teacher=/models/big", "base=/models/small"])
    sections = (config.rollout, config.distill, config.rl, config.prune, config.heal, config.awq, config.w8a8, config.evaluate, config.gate)
    assert {section.run_root for section in sections} == {"/runs/x"}
    assert (config.rollout.teacher, config.serve.teacher, config.distill.student) == ("/models/big", "/models/big", "/models/small")
    assert (config.rl.student, config.prune.student, config.heal.student, config.awq.student) == ("distill", "rl", "prune", "heal")


@pytest.mark.parametrize(
    "key", ["distill.name", "gate.name", "promote.gate", "heal.name", "awq.student", "fp8.format", "recover.name", "evaluate.system"]
)
def test_what_the_chain_looks_up_by_name_cannot_be_named_otherwise(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key} is '\w+' in this chain and cannot be 'other'; leave it out"):
        load(PipelineConfig, DEMO, [f"{key}=other"])


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("evaluate.num_prompts=500", r"gate: min_prompts 1000 is over evaluate\.num_prompts 500: the gate could never decide"),
        ("serve.student_arm.threads=64", r"serving needs 65 logical CPUs .*, num_cpus is 8"),
    ],
)
def test_a_chain_that_could_not_come_to_its_end_is_refused(setting: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load(PipelineConfig, DEMO, [setting])


@pytest.mark.parametrize("setting", ["heal.mode=on_policy", 'heal.replay.rollouts=["../earlier/rollouts"]'])
def test_a_cut_vocabulary_is_healed_by_what_knows_its_tokens_alone(setting: str) -> None:
    settings = [setting, "aware.max_rounds=0"]
    assert load(PipelineConfig, DEMO, settings).prune.axis == "width"
    with pytest.raises(ConfigError, match=r"heal\.(mode|replay).*tokens that prune.axis vocab renumbers"):
        load(PipelineConfig, DEMO, [*settings, "prune.axis=vocab"])


@pytest.mark.parametrize(
    "setting",
    ["teacher=/nowhere", "base=nothing", "distill.rollouts=nothing", "heal.student=prunee", "awq.rollouts=nil", "serve.teacher=/nowhere"],
)
def test_every_input_that_the_chain_does_not_make_is_looked_for_first(setting: str, tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match=f"{setting.partition('=')[2]}: nothing at"):
        check_inputs(load(PipelineConfig, DEMO, [f"run_root={tmp_path}", setting]))


def test_a_text_for_a_tokenizer_is_looked_for_before_anything_is_pretrained(tmp_path: Path) -> None:
    base = ["base=base", "pretrain_base.role=base", "pretrain_base.name=base", 'pretrain_base.tokenizer_texts=["nowhere.txt"]']
    with pytest.raises(MissingInput, match=r"nothing at .*nowhere"):
        check_inputs(load(PipelineConfig, DEMO, [f"run_root={tmp_path}", *base]))


def test_the_demos_inputs_are_all_there_or_made(tmp_path: Path) -> None:
    check_inputs(load(PipelineConfig, DEMO, [f"run_root={tmp_path}"]))


@pytest.mark.parametrize(("num_right", "status", "expected"), [(965, 0, True), (965, 1, False), (925, 1, True), (None, 1, False)], ids=str)
def test_a_failed_job_is_not_taken_for_an_earlier_runs_passed_gate(
    num_right: int | None, status: int, expected: bool, tmp_path: Path
) -> None:
    if num_right is not None:
        publish_gate(tmp_path, "awq", num_right)
    assert decided(load(PipelineConfig, DEMO, [f"run_root={tmp_path}"]), status) is expected


def test_a_run_is_served_with_the_settings_that_it_was_made_with_even_when_it_was_moved(tmp_path: Path) -> None:
    made = load(PipelineConfig, DEMO, ["run_root=/where/it/was", "serve.salt=other", "teacher=/models/big"])
    write_atomically(tmp_path / RUN_CONFIG, made.model_dump_json())
    served = config_of_run(tmp_path, ["traffic.port=8123"])
    assert served.serve == made.serve.model_copy(update={"run_root": str(tmp_path)})
    assert (served.traffic.port, served.num_cpus) == (8123, made.num_cpus)


def test_where_nothing_has_run_yet_the_demo_is_served(tmp_path: Path) -> None:
    assert config_of_run(tmp_path, []).serve.teacher == load(PipelineConfig, DEMO).serve.teacher


@pytest.mark.parametrize("command", ["demo", "serve"])
def test_a_taken_port_and_a_misspelt_key_end_with_2_before_ray_starts(command: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for setting, said in ((f"traffic.port={port}", f"error: port {port} is taken"), ("traffic.prot=1", "did you mean port?")):
            command_line = [sys.executable, "-m", f"supertiny.pipeline.{command}", "--run-root", str(tmp_path), "--set", setting]
            ran = subprocess.run(command_line, capture_output=True, text=True, check=False, timeout=120)
            assert ran.returncode == 2
            assert said in ran.stderr
            assert "local Ray" not in ran.stderr


def test_keys_that_are_not_there_are_said_before_ray_starts(tmp_path: Path) -> None:
    setting = f"serve.api_keys={tmp_path / 'keys.toml'}"
    command = [sys.executable, "-m", "supertiny.pipeline.serve", "--run-root", str(tmp_path), "--set", setting]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 1
    assert "keys.toml: No such file or directory" in ran.stderr
    assert "local Ray" not in ran.stderr


def test_a_cut_vocabulary_is_healed_and_quantized_with_rollouts_in_its_tokens() -> None:
    config = load(PipelineConfig, DEMO, ["prune.axis=vocab+depth"])
    quantized = (config.awq, config.gptq, config.w8a8, config.fp8)
    assert {section.rollouts for section in (*config.healings, *quantized)} == {"prune-rollouts"}
    assert len(config.healings) == 3
    assert config.prune.rollouts == load(PipelineConfig, DEMO).heal.rollouts == "rollouts"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (["heal.rollouts=prune-rollouts", "w8a8.rollouts=prune-rollouts"], "heal.rollouts, .*, w8a8.rollouts: has to be rollouts where"),
        (["aware.heal.rollouts=prune-rollouts"], "PipelineConfig: aware.heal.rollouts: .*axis is width, which makes no prune-rollouts"),
        (["prune.axis=vocab", "awq.rollouts=rollouts"], "PipelineConfig: awq.rollouts: has to be prune-rollouts .*axis is vocab"),
        (["prune.axis=vocab", "recover.heal.rollouts=earlier"], "PipelineConfig: recover.heal.rollouts: has to be prune-rollouts"),
        (
            ["prune.axis=vocab", "heal.rollouts=../earlier/rollouts"],
            "PipelineConfig: heal.rollouts, recover.heal.rollouts, aware.heal.rollouts:",
        ),
    ],
)
def test_rollouts_in_other_tokens_than_the_cut_student_s_are_refused(settings: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load(PipelineConfig, DEMO, settings)


def test_healing_until_it_is_enough_has_the_settings_of_healing_and_looks_back_at_the_student_before_the_cut() -> None:
    config = load(PipelineConfig, DEMO, ["heal.learning_rate=0.003", "recover.heal.epochs=0.5", "gate.confidence=0.9"])
    recover = config.recover
    assert (recover.baseline, recover.heal.name, recover.heal.student) == ("eval-rl", "heal", "heal")
    assert (recover.heal.learning_rate, recover.heal.epochs, recover.confidence, recover.margin) == (0.003, 0.5, 0.9, 0.02)
    assert recover.evaluate == config.evaluate
    assert load(PipelineConfig, DEMO, ["curriculum=[]"]).recover.baseline == "eval-base"


def test_a_candidate_is_trained_through_its_rounding_for_the_gate() -> None:
    config = load(PipelineConfig, DEMO, ["gate.margin=0.03", "gate.baseline=eval-other", "heal.learning_rate=0.003"])
    aware = config.aware
    assert (aware.baseline, aware.margin, aware.confidence, aware.min_prompts) == ("eval-other", 0.03, 0.95, 1000)
    assert (aware.name, aware.heal.name, aware.heal.student, aware.heal.learning_rate) == ("recovery-aware", "aware", "heal", 0.003)
    plain = load(PipelineConfig, DEMO)
    assert (plain.aware.baseline, plain.aware.margin) == (plain.gate.baseline, plain.gate.margin)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (["recover.evaluate.num_prompts=1500"], r"recover\.evaluate: a round is compared with what `evaluate` measured"),
        (["aware.cut=prune"], r"aware\.cut: its rounds begin with the candidate"),
        (["aware.quantize.format=w8a8"], r"aware\.quantize: without effect; the candidates' own sections say how"),
        (
            ["heal.mode=on_policy", "heal.losses={reverse_kl=1.0}", "aware.max_rounds=1"],
            r"aware\.heal: training through a rounding is off-policy",
        ),
        (["heal.lora.rank=4", "aware.max_rounds=1"], r"aware\.heal: training through a rounding is off-policy and trains all weights"),
        (["candidates=[]"], "candidates: Tuple should have at least 1 item"),
        (['candidates=["awq", "heal", "awq"]'], "candidates: awq is there twice"),
        (['candidates=["int4"]'], r"candidates\.0: Input should be 'heal', 'awq', 'gptq', 'w8a8' or 'fp8'"),
    ],
)
def test_healing_and_candidates_that_cannot_be_are_refused(settings: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load(PipelineConfig, DEMO, settings)


def test_only_named_candidates_need_inputs_and_places(tmp_path: Path) -> None:
    config = load(PipelineConfig, DEMO, [f"run_root={tmp_path}", 'candidates=["fp8", "heal", "awq"]', "w8a8.rollouts=nothing"])
    assert [stage.name for stage in config.quantized] == ["fp8", "awq"]
    check_inputs(config)
    with pytest.raises(MissingInput, match="nothing: nothing at"):
        check_inputs(config.model_copy(update={"candidates": ("w8a8",)}))


def test_a_resolved_chain_is_itself_a_chain() -> None:
    for settings in (["heal.mode=on_policy", "heal.losses={reverse_kl=1.0}"], ["heal.quantization_aware.format=w8a8"]):
        config = load(PipelineConfig, SNIPS, settings)
        assert PipelineConfig.model_validate(config.model_dump(mode="json")) == config


def test_what_heals_otherwise_than_a_rounding_is_trained_for_has_no_rounds_through_it() -> None:
    without, beside = ["heal.mode=on_policy", "heal.losses={reverse_kl=1.0}"], ["heal.lora.rank=4"]
    assert [load(PipelineConfig, SNIPS, settings).aware.max_rounds for settings in ([], without, beside)] == [2, 0, 0]
    stored = load(PipelineConfig, SNIPS, [*without, "aware.heal.mode=off_policy", "aware.heal.losses={forward_kl=1.0}"]).aware
    assert (stored.heal.mode, stored.max_rounds) == ("off_policy", 2)


def test_a_heal_through_a_rounding_leaves_the_candidates_theirs() -> None:
    config = load(PipelineConfig, DEMO, ["heal.quantization_aware.format=gptq_w4a16"])
    assert config.heal.quantization_aware is not None
    assert config.aware.heal.quantization_aware is None


def test_a_cut_and_its_groups_are_split_over_the_workers_of_the_evaluating_engine() -> None:
    def workers(*more: str) -> list[int]:
        config = load(PipelineConfig, SNIPS, ["evaluate.engine.tensor_parallel_size=2", *more])
        return [section.tensor_parallel_size for section in (config.prune, config.awq, config.gptq, config.w8a8)]

    assert workers() == [2, 2, 2, 1]
    assert workers("prune.tensor_parallel_size=1") == [1, 2, 2, 1]


def test_the_pareto_table_is_measured_where_students_are_evaluated_and_has_what_the_chain_compares() -> None:
    evaluate = ["evaluate.engine.max_num_seqs=24", "evaluate.labels={group='small'}", "evaluate.max_tokens=77"]
    table = load(PipelineConfig, SNIPS, [*evaluate, "pareto.rounds=1"]).pareto
    assert (table.engine.max_num_seqs, table.place.labels, table.max_tokens, table.rounds) == (32, {"group": "small"}, 77, 1)
    for setting in ('pareto.evaluations=["eval-rl"]', 'pareto.candidates=["eval-rl"]', "pareto.candidates_are=mine", "pareto.name=mine"):
        with pytest.raises(ConfigError, match=r"pareto\.\w+ is (\[\]|None|'pareto') in this chain and cannot be"):
            load(PipelineConfig, SNIPS, [setting])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("pareto.split=typo", "no split typo"),
        ("pareto.num_prompts=1000000", "num_prompts 1000000: the split heldout has only"),
        ("rollout.limit=7", "rollout.limit 7: nothing is promoted without a proof, of 8 prompts at least"),
    ],
)
def test_prompts_that_later_stages_cannot_do_with_are_refused_before_the_first_stage(setting: str, message: str) -> None:
    check_tasks(load(PipelineConfig, DEMO))
    with pytest.raises(ConfigError, match=message):
        check_tasks(load(PipelineConfig, DEMO, [setting]))


def test_answers_that_leave_no_room_for_a_prompt_are_refused_with_the_config() -> None:
    with pytest.raises(ConfigError, match=r"pareto: .*max_tokens 512 leaves no room for a prompt within engine\.max_model_len 512"):
        load(PipelineConfig, DEMO, ["pareto.max_tokens=512", "pareto.engine.max_model_len=512"])


def test_every_stage_of_one_process_that_the_chain_runs_is_looked_up_a_place_for() -> None:
    config = load(PipelineConfig, DEMO, ['candidates=["heal", "awq", "gptq", "w8a8", "fp8"]'])
    sections = (getattr(config, name) for name in PipelineConfig.model_fields)
    assert {each.name for each in config.placed} == {each.name for each in sections if isinstance(each, PlacedConfig)}


def test_only_a_chain_that_quantizes_trains_through_a_rounding() -> None:
    sizes = [len(load(PipelineConfig, DEMO, [f"candidates={names}"]).healings) for names in ('["awq"]', '["heal"]')]
    assert sizes == [3, 2]


def test_healing_looks_back_at_the_student_that_is_cut() -> None:
    assert load(PipelineConfig, DEMO).recover.baseline == "eval-rl"
    assert load(PipelineConfig, DEMO, ["prune.student=distill"]).recover.baseline == "eval-distill"
    assert load(PipelineConfig, DEMO, ["base=/models/small", "prune.student=/models/small"]).recover.baseline == "eval-base"
    with pytest.raises(ConfigError, match="student /models/x is evaluated nowhere in this chain"):
        load(PipelineConfig, DEMO, ["prune.student=/models/x"])


def test_losses_of_a_round_are_exactly_those_given() -> None:
    config = load(PipelineConfig, DEMO, ["heal.losses.forward_kl=1.0", "recover.heal.losses.cross_entropy=1.0"])
    given = [stage.losses.model_dump(exclude_none=True) for stage in (config.heal, config.recover.heal)]
    assert given == [{"forward_kl": 1.0}, {"cross_entropy": 1.0}]


def test_a_format_that_the_candidate_decides_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"aware\.heal\.quantization_aware: without effect"):
        load(PipelineConfig, DEMO, ["aware.heal.quantization_aware.format=w8a8"])


def test_the_proof_runs_in_the_engine_of_the_evaluations_unless_it_says_otherwise() -> None:
    config = load(PipelineConfig, DEMO, ["run_root=/runs/x", "parity.num_rows=8", "evaluate.engine.max_num_seqs=24"])
    assert (config.parity.num_rows, config.parity.run_root, config.parity.engine) == (8, "/runs/x", config.evaluate.engine)
    assert config.parity.engine.max_num_seqs == 24
    own = load(PipelineConfig, DEMO, ["evaluate.engine.max_num_seqs=24", "parity.engine.max_num_seqs=4"])
    assert (own.parity.engine.max_num_seqs, own.parity.engine.num_threads) == (4, own.evaluate.engine.num_threads)


def test_the_proof_runs_on_the_nodes_of_the_evaluations_unless_it_says_otherwise() -> None:
    evaluations = ["evaluate.num_gpus=1", 'evaluate.labels={"supertiny/group"="student"}']
    assert load(PipelineConfig, DEMO, evaluations).parity.place == PlaceConfig(num_gpus=1, labels={"supertiny/group": "student"})
    assert load(PipelineConfig, DEMO, [*evaluations, "parity.place.num_gpus=2"]).parity.place.num_gpus == 2


def test_a_run_made_when_no_proof_was_asked_for_is_read(tmp_path: Path) -> None:
    made = load(PipelineConfig, DEMO).model_dump(mode="json") | {"parity": None}
    write_atomically(tmp_path / RUN_CONFIG, json.dumps(made))
    assert config_of_run(tmp_path, []).parity.name == "parity"
