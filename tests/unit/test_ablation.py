import json
from pathlib import Path

import pytest
from ablations.experiment import Experiment
from ablations.runs import Result, Stages, make_inputs, make_runs, missing_runs, result_of, runs
from ablations.table import difference, mean, numbers, render
from evaluation_artifacts import FakeModelConfig, publish_evaluation, rows

from supertiny.artifacts import Artifact, make, open_artifact, resolve
from supertiny.config import StageConfig, load, validate
from supertiny.errors import ConfigError, NotFinite, Stopped, SupertinyError
from supertiny.evaluate.config import EvaluateConfig
from supertiny.rollout.config import RolloutConfig
from supertiny.train.pretrain_config import PretrainConfig

FILES = sorted((Path(__file__).resolve().parents[2] / "benchmarks" / "ablations").glob("*.toml"))
INPUTS = {"base": PretrainConfig, "rollout": RolloutConfig}
SMALL = {
    "name": "small",
    "baseline": "sft",
    "pipeline": {"distill": {"learning_rate": 1e-3}},
    "variants": [
        {"name": "start", "section": "evaluate"},
        {"name": "sft", "section": "sft"},
        {"name": "penalty", "section": "distill", "settings": {"losses": {"tail_penalty": 10.0}}},
        {"name": "graded", "section": "rl", "student": "penalty"},
    ],
}


def experiment(**settings) -> Experiment:
    return validate(Experiment, {**SMALL, **settings}, "small")


class Chain:
    """Makes models and evaluations of 10 prompts, of which each stage's name has so many right."""

    def __init__(self, right: dict[str, int], failing: str | None = None, error: SupertinyError | None = None) -> None:
        self.right, self.failing, self.error, self.made = right, failing, error or NotFinite("the loss"), []

    def stages(self) -> Stages:
        return Stages(lambda experiment, folder: None, self.make, self.evaluate)

    def make(self, stage: StageConfig) -> Artifact:
        if stage.name == self.failing:
            raise self.error
        self.made.append((stage.name, stage.seed))
        model = FakeModelConfig(run_root=stage.run_root, name=stage.name, contents=f"{stage.name} {stage.learning_rate}")
        return make(model, "model", {}, lambda _: {"parameters": 1, "bytes": 2, "tokens": 100})

    def evaluate(self, config: EvaluateConfig) -> Artifact:
        root = Path(config.run_root)
        if config.model.startswith("package://"):
            make(FakeModelConfig(run_root=str(root), name="shipped", contents=""), "model", {}, lambda _: {"parameters": 1, "bytes": 2})
        name = "shipped" if config.model.startswith("package://") else config.model
        return publish_evaluation(root, open_artifact(name, str(root), "model"), rows([at < self.right[name] for at in range(10)]))


RIGHT = {"shipped": 2, "sft": 6, "penalty": 8, "graded": 9}


def result(variant: str, seed: int, right: str) -> Result:
    answers = {str(at): one == "1" for at, one in enumerate(right)}
    sizes = {"parameters": 1, "bytes": 2, "p50_seconds": 0.1, "seconds": 1.0}
    return Result(key="", variant=variant, seed=seed, right=answers, slices={}, made={}, **sizes)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_experiment_is_valid_and_named_after_its_file(path: Path):
    assert load(Experiment, path).name == path.stem


@pytest.mark.parametrize("path", sorted((FILES[0].parent / "inputs").glob("*.toml")), ids=lambda path: path.stem)
def test_what_an_experiment_starts_from_is_valid_and_named_after_it(path: Path):
    experiment, _, stage = path.stem.rpartition("-")
    assert experiment in {each.stem for each in FILES}
    load(INPUTS[stage], path)


def test_a_variant_is_its_section_with_its_own_settings_on_the_student_that_it_names(tmp_path: Path):
    small = experiment()
    penalty, graded = (small.stage(variant, 3, tmp_path) for variant in small.variants[2:])
    assert (penalty.losses.weights(), penalty.learning_rate, penalty.seed) == ({"tail_penalty": 10.0}, 1e-3, 3)
    assert (graded.student, graded.rollouts) == ("penalty", "../inputs/rollouts")
    assert graded.run_root == str(tmp_path / "small" / "seed-3")


def test_what_is_taken_is_neither_made_nor_looked_up_in_the_inputs(tmp_path: Path):
    small = experiment(take={"rollouts": "/made", "base": "../../other/seed-{seed}/rl"})
    stage = small.stage(small.variants[1], 7, tmp_path)
    assert (stage.rollouts, stage.student) == ("/made", "../../other/seed-7/rl")


def test_what_rollouts_take_is_found_by_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made_before = tmp_path / "other" / "inputs" / "teacher"
    made_before.mkdir(parents=True)
    found = []
    monkeypatch.setattr("supertiny.rollout.pipeline.rollout", lambda config: found.append(resolve(config.teacher, config.run_root)))
    make_inputs(experiment(take={"teacher": "../../other/inputs/teacher"}), tmp_path)
    assert [path.resolve() for path in found] == [made_before]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"baseline": "rl"}, "baseline rl is no variant"),
        ({"variants": [{"name": "sft", "section": "sft", "student": "later"}]}, "sft: student later is neither base, nor taken"),
        ({"variants": [{"name": "sft", "section": "sft"}] * 2}, "two variants have one name"),
        ({"take": {"sft": "/x"}}, "sft is taken or the base"),
        ({"settings": {"rl": {"stepz": 3}}}, "stepz: no such key; did you mean steps?"),
    ],
)
def test_an_experiment_that_cannot_work_is_refused(changed: dict, message: str):
    with pytest.raises(ConfigError) as refused:
        experiment(**changed)
    assert message in str(refused.value)


def test_every_run_is_made_once_and_leaves_its_answers(tmp_path: Path):
    small, chain = experiment(seeds=(0, 1)), Chain(RIGHT)
    assert make_runs(small, missing_runs(small, tmp_path), tmp_path, chain.stages()) == []
    assert chain.made == [(name, seed) for seed in (0, 1) for name in ("sft", "penalty", "graded")]
    assert missing_runs(small, tmp_path) == []
    assert [sum(result_of(run).right.values()) for run in runs(small, tmp_path)] == [2, 6, 8, 9] * 2


def test_a_run_of_other_settings_and_those_made_from_it_are_made_again(tmp_path: Path):
    small, chain = experiment(seeds=(0,)), Chain(RIGHT)
    make_runs(small, missing_runs(small, tmp_path), tmp_path, chain.stages())
    other = experiment(seeds=(0,), settings={"distill": {"min_divergence": 0.1}})
    assert [run.variant.name for run in missing_runs(other, tmp_path)] == ["penalty", "graded"]


def test_wanted_variants_come_with_those_that_they_are_made_from(tmp_path: Path):
    assert [run.variant.name for run in missing_runs(experiment(seeds=(0,)), tmp_path, ["graded"])] == ["penalty", "graded"]


def test_a_run_that_fails_is_named_and_the_others_are_made(tmp_path: Path):
    small, chain = experiment(seeds=(0,)), Chain(RIGHT, failing="sft")
    assert make_runs(small, missing_runs(small, tmp_path), tmp_path, chain.stages()) == ["sft, seed 0: NotFinite: the loss"]
    assert [run.variant.name for run in missing_runs(small, tmp_path)] == ["sft"]


def test_a_run_that_is_told_to_end_ends_all(tmp_path: Path):
    small, chain = experiment(seeds=(0, 1)), Chain(RIGHT, failing="sft", error=Stopped("told to end (SIGTERM)"))
    with pytest.raises(Stopped):
        make_runs(small, missing_runs(small, tmp_path), tmp_path, chain.stages())
    assert len(missing_runs(small, tmp_path)) == len(list(runs(small, tmp_path))) - 1  # what came before it is kept


def test_what_is_made_from_a_failed_run_is_not_tried(tmp_path: Path):
    small, chain = experiment(seeds=(0, 1)), Chain(RIGHT, failing="penalty")
    failed = make_runs(small, missing_runs(small, tmp_path, ["graded"]), tmp_path, chain.stages())
    assert failed[:2] == ["penalty, seed 0: NotFinite: the loss", "graded, seed 0: penalty failed"]
    assert chain.made == []


def test_a_killed_ablation_goes_on_with_the_run_that_was_killed(tmp_path: Path):
    small, killed, again = experiment(seeds=(0,)), Chain(RIGHT), Chain(RIGHT)

    def kill(config: EvaluateConfig) -> Artifact:
        if config.model == "penalty":
            raise KeyboardInterrupt
        return killed.evaluate(config)

    with pytest.raises(KeyboardInterrupt):
        make_runs(small, missing_runs(small, tmp_path), tmp_path, killed.stages()._replace(evaluate=kill))
    make_runs(small, missing_runs(small, tmp_path), tmp_path, again.stages())
    assert [name for name, _ in again.made] == ["penalty", "graded"]


def test_no_run_is_begun_when_the_time_is_over(tmp_path: Path):
    small, chain = experiment(), Chain(RIGHT)
    make_runs(small, missing_runs(small, tmp_path), tmp_path, chain.stages(), seconds=0)
    assert chain.made == []


def test_the_interval_of_a_mean_is_students():
    found = mean([0.1, 0.2, 0.3])  # 0.2 +- 4.3027 * 0.1 / sqrt(3)
    assert found == pytest.approx((0.2, 0.2 - 0.248414, 0.2 + 0.248414), abs=1e-6)


def test_one_seed_says_nothing_of_seeds_and_equal_ones_say_all():
    assert mean([0.5]) == (0.5, -float("inf"), float("inf"))
    assert mean([0.5, 0.5]) == (0.5, 0.5, 0.5)


def test_a_difference_is_paired_by_seed_and_by_prompt():
    first = {seed: result("a", seed, right) for seed, right in enumerate(("1110", "1101"))}
    second = {seed: result("b", seed, right) for seed, right in enumerate(("1010", "0001"))}
    apart = difference(first, second)
    assert apart.over_seeds == pytest.approx((0.375, 0.375 - 12.7062 * 0.125, 0.375 + 12.7062 * 0.125), abs=1e-4)
    assert apart.over_prompts.value == pytest.approx(0.375)  # by prompt 0.5, 1, 0, 0: standard error 0.2394
    assert apart.over_prompts.low == pytest.approx(0.375 - 3.18245 * 0.239357, abs=1e-4)


@pytest.mark.parametrize(
    ("over_prompts", "real"),
    [("1" * 20, True), ("1" * 3 + "0" * 17, False)],
    ids=["on all prompts", "on three of twenty"],
)
def test_a_difference_is_real_where_neither_interval_has_0(over_prompts: str, real: bool):
    first = {seed: result("a", seed, over_prompts) for seed in range(3)}
    second = {seed: result("b", seed, "0" * 20) for seed in range(3)}
    assert difference(first, second).real is real


def test_runs_of_different_prompts_are_not_compared():
    with pytest.raises(ValueError, match="different prompts"):
        difference({0: result("a", 0, "10")}, {0: result("b", 0, "101")})


def test_the_table_has_a_row_a_variant_and_the_json_every_difference():
    small = experiment(seeds=(0, 1, 2))
    results = {
        "sft": {seed: result("sft", seed, "1" * 6 + "0" * 14) for seed in range(3)},
        "penalty": {seed: result("penalty", seed, "1" * 16 + "0" * 4) for seed in range(3)},
    }
    table = render(small, results)
    assert [line.split("|")[1:4] for line in table.splitlines() if line.startswith("| penalty")] == [
        [" penalty ", " 80.00 [80.00, 80.00] ", " +50.00* [+50.00, +50.00] [+25.99, +74.01] "]
    ]
    assert "Real, of 1 differences (each by itself, at 95 %): penalty - sft +50.00." in table
    found = json.loads(numbers(small, results))
    assert found["penalty"] == 0.8
    assert found["penalty_vs_sft"] == {"over_seeds": [0.5, 0.5, 0.5], "over_prompts": [0.5, 0.2599, 0.7401], "real": True}
