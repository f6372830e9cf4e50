from pathlib import Path

import pytest
from evaluation_artifacts import FakeModelConfig, publish_evaluation, publish_model, rows
from pydantic import ValidationError

from supertiny.artifacts import Artifact, make, open_artifact
from supertiny.compress.config import QuantizeConfig
from supertiny.errors import ConfigError
from supertiny.evaluate.config import EvaluateConfig
from supertiny.evaluate.schema import Round
from supertiny.pipeline.pareto_config import ParetoConfig
from supertiny.pipeline.recover import Stages, best_of, recover
from supertiny.pipeline.recover_config import RecoverConfig
from supertiny.train.config import DistillConfig

NUM_PROMPTS = 1000


TASK = {"path": "evaluation_artifacts:NumberedTask", "options": {"num_prompts": NUM_PROMPTS}}


class Healer:
    """Makes models of 100 tokens of training, which get so many of 1,000 prompts right: the cut one first, then each round's."""

    def __init__(self, root: Path, right: list[int]) -> None:
        self.root, self.right, self.stages, self.quantized = root, right, [], []

    def distill(self, config: DistillConfig) -> Artifact:
        self.stages.append(config)
        model = FakeModelConfig(run_root=str(self.root), name=config.name, contents=config.name)
        return make(model, "model", {}, lambda _: {"parameters": 1, "bytes": 2, "tokens": 100})

    def quantize(self, config: QuantizeConfig) -> Artifact:
        self.quantized.append(config)
        return publish_model(self.root, config.name, contents=config.name)

    def evaluate(self, config: EvaluateConfig) -> Artifact:
        right = self.right[len(self.stages)]
        return publish_evaluation(
            self.root, open_artifact(config.model, str(self.root), "model"), rows([at < right for at in range(NUM_PROMPTS)])
        )


def no_table(config: ParetoConfig) -> Artifact:
    raise AssertionError("a recovery compares nothing")


def healed(root: Path, right: list[int], **settings) -> tuple[dict, Healer]:
    teacher = publish_model(root, "sft", contents="sft")
    publish_evaluation(root, teacher, rows([at < 950 for at in range(NUM_PROMPTS)]))
    publish_model(root, "prune", contents="prune")
    healer = Healer(root, right)
    config = RecoverConfig.model_validate({"run_root": str(root), "task": TASK, **settings})
    return recover(config, Stages(healer.distill, healer.evaluate, healer.quantize, no_table)).manifest.metrics, healer


def test_healing_ends_when_the_whole_interval_lies_within_the_margin(tmp_path: Path):
    found, healer = healed(tmp_path, [700, 900, 948])
    assert (found["ended"], found["model"]) == ("enough", "heal-2")
    assert [each["verdict"] for each in found["rounds"]] == ["fail", "fail", "pass"]
    assert [each["tokens"] for each in found["rounds"]] == [0, 100, 200]
    assert [each["exact_match"] for each in found["rounds"]] == [0.7, 0.9, 0.948]
    assert [(stage.name, stage.student, stage.seed) for stage in healer.stages] == [("heal-1", "prune", 1), ("heal-2", "heal-1", 2)]


def test_a_cut_that_costs_nothing_is_not_healed(tmp_path: Path):
    found, healer = healed(tmp_path, [950])
    assert (found["ended"], found["model"], healer.stages) == ("enough", "prune", [])


def test_a_more_accurate_round_that_is_not_surely_near_does_not_go_before_one_that_is():
    gap = {"value": -0.01, "low": -0.02, "high": 0.0}
    rounds = [
        Round.model_validate({"model": name, "tokens": 0, "exact_match": right, "difference": gap, "verdict": verdict})
        for name, right, verdict in (("prune", 0.93, "pass"), ("heal", 0.94, "pass"), ("heal-1", 0.95, "inconclusive"))
    ]
    assert best_of(rounds).model == "heal"
    assert best_of(rounds[2:]).model == "heal-1"


def test_healing_ends_with_its_rounds(tmp_path: Path):
    found, _ = healed(tmp_path, [700, 800, 850], max_rounds=2)
    assert (found["ended"], found["model"]) == ("rounds", "heal-2")


def test_where_none_was_enough_the_best_round_is_named(tmp_path: Path):
    found, _ = healed(tmp_path, [700, 860, 850], max_rounds=2)
    assert (found["ended"], found["model"]) == ("rounds", "heal-1")


def test_without_a_healing_before_it_the_first_round_is_made_in_any_case(tmp_path: Path):
    found, _ = healed(tmp_path, [700, 800, 850], max_tokens=1)
    assert (found["ended"], found["rounds"][-1]["tokens"]) == ("tokens", 100)


def test_no_round_is_begun_that_would_go_beyond_the_tokens(tmp_path: Path):
    found, _ = healed(tmp_path, [700, 800, 850, 880], max_tokens=250)
    assert (found["ended"], found["rounds"][-1]["tokens"]) == ("tokens", 200)


@pytest.mark.parametrize("section", ["heal", "evaluate"])
def test_sections_take_run_and_task_from_the_top(section: str):
    config = RecoverConfig.model_validate({"run_root": "/runs/x", section: {"git_revision": "abc"}})
    assert (config.heal.run_root, config.evaluate.run_root) == ("/runs/x", "/runs/x")
    assert getattr(config, section).git_revision == "abc"


def test_a_quantized_model_that_is_good_enough_is_left_as_calibration_made_it(tmp_path: Path):
    found, healer = healed(tmp_path, [950], quantize={"format": "awq_w4a16"})
    assert (found["ended"], found["model"], healer.stages) == ("enough", "awq", [])
    assert [(each.student, each.rounding) for each in healer.quantized] == [("prune", "calibrated")]


def test_where_quantizing_costs_too_much_the_student_is_trained_through_the_rounding(tmp_path: Path):
    settings = {"name": "w4a16", "format": "gptq_w4a16", "group_size": 64}
    found, healer = healed(tmp_path, [700, 900, 948], quantize=settings)
    assert (found["ended"], found["model"]) == ("enough", "w4a16-2")
    assert [(stage.name, stage.student) for stage in healer.stages] == [("heal-1", "prune"), ("heal-2", "heal-1")]
    aware = [stage.quantization_aware for stage in healer.stages]
    assert [(each.format, each.group_size) for each in aware] == [("gptq_w4a16", 64)] * 2
    made = [(each.name, each.student, each.rounding) for each in healer.quantized]
    assert made == [("w4a16", "prune", "calibrated"), ("w4a16-1", "heal-1", "nearest"), ("w4a16-2", "heal-2", "nearest")]


def test_a_cut_that_is_measured_unquantized_is_refused_beside_quantized_rounds():
    with pytest.raises(ValidationError, match="cut: leave it out where `quantize` is given"):
        RecoverConfig.model_validate({"cut": "prune", "heal": {"student": "heal"}, "quantize": {"format": "w8a8"}})


def test_rounds_are_trained_through_the_rounding_that_they_are_measured_in():
    aware = {"heal": {"quantization_aware": {"format": "gptq_w4a16", "group_size": 64}}}
    RecoverConfig.model_validate({**aware, "quantize": {"format": "gptq_w4a16", "group_size": 64}})
    with pytest.raises(ValidationError, match=r"has format and group_size \('gptq_w4a16', 64\), quantize has \('w8a8', None\)"):
        RecoverConfig.model_validate({**aware, "quantize": {"format": "w8a8"}})


def test_a_student_that_was_healed_before_says_what_that_took_and_what_it_gave(tmp_path: Path):
    def healed_before() -> Artifact:
        config = FakeModelConfig(run_root=str(tmp_path), name="heal", contents="heal")
        return make(config, "model", {}, lambda _: {"parameters": 1, "bytes": 2, "tokens": 40})

    healed_before()
    settings = {"cut": "prune", "heal": {"student": "heal"}, "max_rounds": 1, "max_tokens": 10}
    found, healer = healed(tmp_path, [900, 930], **settings)
    assert [(each["model"], each["tokens"]) for each in found["rounds"]] == [("prune", 0), ("heal", 40)]
    assert (found["ended"], healer.stages) == ("tokens", [])
    found, healer = healed(tmp_path, [900, 930], **{**settings, "max_tokens": 79})
    assert (found["ended"], healer.stages) == ("tokens", [])
    found, healer = healed(tmp_path, [900, 930], **{**settings, "max_tokens": 80})
    assert [(each["model"], each["tokens"]) for each in found["rounds"]] == [("prune", 0), ("heal", 40), ("heal-1", 140)]
    assert found["ended"] == "rounds"


def test_a_cut_beside_a_student_that_was_not_healed_is_refused(tmp_path: Path):
    publish_model(tmp_path, "heal", contents="heal")
    with pytest.raises(ConfigError, match="was not made by training, so no healing came before; leave `cut` out"):
        healed(tmp_path, [900], cut="prune", heal={"student": "heal"})


def test_without_rounds_it_measures_alone(tmp_path: Path):
    found, healer = healed(tmp_path, [700], max_rounds=0)
    assert (found["ended"], found["model"], healer.stages) == ("rounds", "prune", [])


def test_rounds_are_trained_for_the_default_format_where_none_is_named():
    config = RecoverConfig.model_validate({"quantize": {"name": "small"}})
    assert config.quantize is not None
    assert config.heal.quantization_aware is not None
    assert config.heal.quantization_aware.format == config.quantize.format


def test_a_student_of_its_own_is_refused_for_quantizing():
    with pytest.raises(ValidationError, match=r"quantize\.student: without effect; every round quantizes what healing makes of prune"):
        RecoverConfig.model_validate({"quantize": {"student": "other"}})


def test_a_baseline_that_was_asked_other_prompts_is_refused_before_a_round(tmp_path: Path):
    publish_evaluation(tmp_path, publish_model(tmp_path, "sft", contents="sft"), rows([True] * (NUM_PROMPTS + 1))[1:])
    publish_model(tmp_path, "prune", contents="prune")
    healer = Healer(tmp_path, [950])
    config = RecoverConfig.model_validate({"run_root": str(tmp_path), "task": TASK, "quantize": {"format": "w8a8"}})
    with pytest.raises(ConfigError, match="eval-sft did not ask the prompts of `evaluate`: 2 are in one alone, such as prompt-00000"):
        recover(config, Stages(healer.distill, healer.evaluate, healer.quantize, no_table))
    assert (healer.stages, healer.quantized) == ([], [])


def test_rounds_that_could_never_pass_are_refused():
    with pytest.raises(ValidationError, match=r"min_prompts 1000 is over evaluate\.num_prompts 200: no round could pass"):
        RecoverConfig.model_validate({"evaluate": {"num_prompts": 200}})


def test_a_resolved_config_is_itself_a_config():
    config = RecoverConfig.model_validate({"quantize": {"format": "w8a8"}})
    assert RecoverConfig.model_validate(config.model_dump(mode="json")) == config
