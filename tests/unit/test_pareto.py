import shutil
from pathlib import Path

import pytest
from evaluation_artifacts import make_again, publish_evaluation, publish_gate, publish_model, rows

from supertiny.artifacts import make, open_artifact
from supertiny.compress.pareto import Row, dominated_by, explain, render
from supertiny.compress.speed import Speed
from supertiny.config import load, validate
from supertiny.errors import ConfigError, MissingInput, NoAnswer
from supertiny.evaluate.report import write_report
from supertiny.pipeline.config import PipelineConfig
from supertiny.pipeline.pareto import check_same, pareto
from supertiny.pipeline.pareto_config import ParetoConfig
from supertiny.pipeline.report import choice_judged


def model(name: str, quality: float, size: int, milliseconds: float, rate: float = 100.0, form: str = "bfloat16") -> Row:
    rates = {1: 1000 / milliseconds, 8: 4 * rate, 32: 8 * rate}
    low, high = quality - 0.01, quality + 0.01
    speed = {"seconds_per_token": milliseconds / 1000, "tokens_per_second": rates, "usd_per_thousand_correct": 0.01}
    return Row(name=name, format=form, parameters=size // 2, bytes=size, quality=quality, quality_low=low, quality_high=high, **speed)


STUDENT = model("rl", 0.94, 1000, 30)
SMALL = model("heal", 0.93, 800, 20, 120)
BITS = model("w8a8", 0.93, 400, 15, 110, "w8a8")
SLOW = model("awq", 0.92, 400, 40, 50, "awq_w4a16")
ALL = [STUDENT, SMALL, BITS, SLOW]


def test_a_row_that_another_is_nowhere_worse_than_is_dominated():
    assert dominated_by(SLOW, ALL) == "w8a8"
    assert [dominated_by(row, ALL) for row in (STUDENT, SMALL, BITS)] == [None, None, None]


def test_a_row_is_dominated_by_one_that_none_dominates():
    worse = SLOW.model_copy(update={"name": "worse", "quality": 0.9})
    assert dominated_by(worse, [SLOW, BITS, worse]) == "w8a8"


def test_equal_rows_do_not_dominate_each_other():
    assert dominated_by(STUDENT, [STUDENT, STUDENT.model_copy(update={"name": "same"})]) is None


def test_the_choice_is_explained_in_one_sentence():
    said = explain(ALL, "w8a8", "as accurate as rl, and cheaper per right answer")
    assert said == (
        "`w8a8` (w8a8, 93.0 %) is chosen: as accurate as rl, and cheaper per right answer; 15.00 ms a token at batch 1, 0.40 of the bytes "
        "of `rl`."
    )
    assert explain(ALL, "rl", "the most accurate").endswith("30.00 ms a token at batch 1, it is the largest here.")


def test_the_table_marks_what_is_chosen_and_what_is_dominated():
    lines = render(ALL, "w8a8", ["Why.", "On what."]).splitlines()
    assert "| w8a8 | w8a8 | 93.0 % (92.0 to 94.0) | 10 | 0.00 M | 0.00 | 15.00 | 440 | 880 |  | chosen |" in lines
    assert lines[5].startswith("| awq ")
    assert lines[5].endswith("| dominated by w8a8 |")
    assert len({line.count("|") for line in lines[:6]}) == 1
    assert lines[6:] == ["", "Why.", "", "On what."]


def test_a_dominated_model_may_be_the_chosen_one():
    (line,) = [line for line in render(ALL, "awq", []).splitlines() if line.startswith("| awq")]
    assert line.endswith("| chosen, dominated by w8a8 |")


def test_evaluations_of_other_models_or_of_other_prompts_are_refused(tmp_path):
    models = {name: publish_model(tmp_path, name, contents=name) for name in ("rl", "heal")}
    evaluations = {name: publish_evaluation(tmp_path, each, rows([True] * 50)) for name, each in models.items()}
    check_same(models, evaluations)
    with pytest.raises(ConfigError, match=r"is not of .*rl as it is now"):
        check_same(models, {"rl": evaluations["heal"], "heal": evaluations["heal"]})
    fewer = publish_evaluation(tmp_path, models["heal"], rows([True] * 40))
    with pytest.raises(
        ConfigError, match=r"eval-rl and eval-heal asked different prompts: 10 are in one alone, such as prompt-00040; name in `eval"
    ):
        check_same(models, {"rl": evaluations["rl"], "heal": fewer})
    others = publish_evaluation(tmp_path, models["heal"], rows([True] * 60)[10:])  # as many
    with pytest.raises(ConfigError, match="asked different prompts: 20 are in one alone"):
        check_same(models, {"rl": evaluations["rl"], "heal": others})


def test_a_teacher_pipeline_is_no_row(tmp_path):
    model = publish_model(tmp_path, "teacher", contents="teacher")
    evaluation = publish_evaluation(tmp_path, model, rows([True] * 50), system="teacher")
    with pytest.raises(ConfigError, match="eval-teacher is of a whole teacher pipeline"):
        check_same({"teacher": model}, {"teacher": evaluation})


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Three evaluated students and a teacher, whose engines make so many tokens a second each time."""
    for name, right in {"teacher": 49, "rl": 48, "heal": 47, "w8a8": 20}.items():
        system = "teacher" if name == "teacher" else "student"
        published = publish_model(tmp_path, name, contents=name)
        publish_evaluation(tmp_path, published, rows([at < right for at in range(50)]), system, {"each": 0.01 / right})
    rates = {"rl": [10, 90, 20], "heal": [30, 30, 30], "w8a8": [50, 40, 60]}
    asked = []

    def measured(folder: Path, *_) -> Speed:
        asked.append(folder.name)
        if folder.name == "too_big":
            raise RuntimeError("no memory")
        if folder.name not in rates:
            raise NoAnswer("no prompt got a token in answer")
        rate = rates[folder.name][(asked.count(folder.name) - 1) % 3]
        return Speed(seconds_per_token=1 / rate, tokens_per_second=dict.fromkeys((1, 8, 32), rate))

    monkeypatch.setattr("supertiny.pipeline.pareto.measure_speed", measured)
    return ParetoConfig(run_root=str(tmp_path)), asked


def test_models_are_measured_in_turns_and_medians_count(run):
    config, asked = run
    found = pareto(config).manifest.metrics
    assert (set(asked), len(asked)) == ({"rl", "heal", "w8a8"}, 9)
    assert asked == 3 * asked[:3]
    assert {row["name"]: row["tokens_per_second"]["8"] for row in found["rows"]} == {"rl": 20, "heal": 30, "w8a8": 50}
    assert found["measured"].startswith("Speeds: median of 3 runs in turns, 32 prompts, answers of at most 96 tokens, vLLM ")


def test_the_best_is_chosen_by_what_the_table_measures_and_not_by_an_evaluation_s_own_time(run):
    config, _ = run
    found = pareto(config).manifest.metrics
    assert (found["model"], found["evaluation"]) == ("heal", "eval-heal")  # by its evaluation's time `rl` is the cheaper
    assert "`heal` (bfloat16, 94.0 %) is chosen: as accurate as rl, and cheaper per right answer; 33.33 ms" in found["why"]
    costs = {row["name"]: row["usd_per_thousand_correct"] for row in found["rows"]}
    assert costs["rl"] == pytest.approx(1000 * (20 / 20) * 0.1008 / 3600 / 0.96)  # 20 tokens an answer, 20 a second, 0.1008 USD an hour
    assert found["measured"].endswith("Costs: at the speed of 32 requests together, for 0.1008 USD an hour (m7i-large).")


def test_only_candidates_are_chosen_and_it_is_said_what_they_are(run):
    config, _ = run
    named = {"evaluations": ("eval-heal", "eval-rl", "eval-w8a8"), "rounds": 1, "candidates_are": "2 that would pass"}
    found = pareto(config.model_copy(update={**named, "candidates": ("eval-rl", "eval-w8a8")})).manifest.metrics
    assert "`rl` (bfloat16, 96.0 %) is chosen: of 2 that would pass it is the most accurate;" in found["why"]
    alone = pareto(config.model_copy(update={**named, "candidates": ("eval-w8a8",)})).manifest.metrics
    assert "`w8a8` (bfloat16, 40.0 %) is chosen: 2 that would pass;" in alone["why"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"candidates_are": "foo"}, "candidates_are: without effect"),
        ({"candidates": ("eval-rl",)}, "eval-rl is none of `evaluations`"),
        ({"engine": {"max_num_seqs": 31}}, "engine.max_num_seqs 31 is under 32"),
        ({"max_tokens": 512}, "max_tokens 512 leaves no room"),
    ],
)
def test_settings_without_effect_or_sense_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        validate(ParetoConfig, settings, "test")


def test_a_model_that_answers_nothing_is_left_out(run):
    config, _ = run
    silent = publish_model(Path(config.run_root), "silent", contents="silent")
    publish_evaluation(Path(config.run_root), silent, rows([True] * 50))
    found = pareto(config).manifest.metrics
    assert (found["model"], len(found["rows"])) == ("heal", 3)
    assert found["measured"].endswith(" Left out, since nothing of them could be measured: silent.")
    alone = {"evaluations": ("eval-rl", "eval-silent"), "candidates": ("eval-silent",)}
    with pytest.raises(NoAnswer, match="silent: none of the candidates answered anything"):
        pareto(config.model_copy(update=alone))


def test_a_model_that_its_engine_refuses_stops_the_table_only_where_it_may_be_chosen(run):
    config, _ = run
    publish_evaluation(Path(config.run_root), publish_model(Path(config.run_root), "too_big", contents="big"), rows([True] * 50))
    among = config.model_copy(update={"evaluations": ("eval-rl", "eval-too_big"), "candidates": ("eval-rl",)})
    assert [row["name"] for row in pareto(among).manifest.metrics["rows"]] == ["rl"]
    with pytest.raises(RuntimeError, match="no memory"):
        pareto(among.model_copy(update={"candidates": ("eval-rl", "eval-too_big")}))


def test_an_evaluation_may_have_any_name_and_lie_in_another_run(run, tmp_path):
    config, _ = run
    shutil.copytree(tmp_path, other := tmp_path / "other")
    (other / "eval-rl").rename(other / "smoke")
    found = pareto(config.model_copy(update={"evaluations": (str(other / "smoke"), "eval-heal")})).manifest.metrics
    assert [row["name"] for row in found["rows"]] == ["rl", "heal"]
    twice = pareto(config.model_copy(update={"evaluations": (str(other / "smoke"), "eval-rl")})).manifest.metrics
    assert [row["name"] for row in twice["rows"]] == [str(other / "smoke"), "eval-rl"]


def test_a_run_without_evaluated_students_has_no_table(tmp_path):
    with pytest.raises(MissingInput, match="no student was evaluated there"):
        pareto(ParetoConfig(run_root=str(tmp_path)))


def test_a_model_made_again_is_measured_again(run):
    config, asked = run
    config = config.model_copy(update={"evaluations": ("eval-rl",)})
    before = pareto(config)
    assert (pareto(config), len(asked)) == (before, 3)
    again = make_again(open_artifact("rl", config.run_root, "model"), "other weights")
    publish_evaluation(Path(config.run_root), again, rows([at < 40 for at in range(50)]))
    found = pareto(config)
    assert (found.manifest.key, len(asked)) == (before.manifest.key, 6)
    assert found.manifest.metrics["rows"][0]["quality"] == 0.8


def test_the_report_shows_the_chain_s_table_whose_choice_the_gate_judged(tmp_path, checkout):
    chain = load(PipelineConfig, checkout / "jobs/configs/demo/pipeline.toml", [f"run_root={tmp_path}"])
    assert choice_judged(chain) is None
    for name, models, chosen in (("pareto", ALL, "rl"), ("pareto-aware", ALL, "w8a8"), ("pareto-all", ALL[:2], "heal")):
        config = ParetoConfig(run_root=str(tmp_path), name=name)
        found = {
            "rows": [row.model_dump(mode="json") for row in models],
            "model": chosen,
            "evaluation": f"eval-{chosen}",
            "why": f"Why `{name}`.",
            "measured": "Speeds: here.",
        }
        make(config, "pareto", {}, lambda _, found=found: found)
    publish_gate(tmp_path, "w8a8", 960)
    assert choice_judged(chain).model == "w8a8"
    publish_gate(tmp_path, "rl", 960)
    write_report(str(tmp_path), choice=choice_judged(chain))
    page = (tmp_path / "report.html").read_text()
    assert "Why <code>pareto</code>. Speeds: here." in page
    assert '<tr class="candidate"><th scope="row">rl</th>' in page
    assert "<td>93.0 %<small>92.0 to 94.0</small></td>" in page
    assert "dominated by w8a8" in page
