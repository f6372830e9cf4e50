import pytest
from evaluation_artifacts import publish_evaluation, publish_model, rows

from supertiny.artifacts import make
from supertiny.compress.pareto import Row, choose, dominated_by, explain, render
from supertiny.errors import ConfigError
from supertiny.evaluate.report import write_report
from supertiny.pipeline.pareto import check_same
from supertiny.pipeline.pareto_config import ParetoConfig
from supertiny.pipeline.report import newest_choice


def model(name: str, quality: float, size: int, milliseconds: float, rate: float = 100.0, form: str = "bfloat16") -> Row:
    rates = {1: 1000 / milliseconds, 8: 4 * rate, 32: 8 * rate}
    low, high = quality - 0.01, quality + 0.01
    speed = {"seconds_per_token": milliseconds / 1000, "tokens_per_second": rates}
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


def test_the_choice_is_the_fastest_within_the_margin_of_the_best():
    assert choose(ALL, 0.02).name == "w8a8"
    assert choose(ALL, 0.005).name == "rl"


def test_no_model_is_no_choice():
    with pytest.raises(ConfigError, match="no model to choose from"):
        choose([], 0.02)


def test_the_choice_is_explained_in_one_sentence():
    assert explain(ALL, 0.015) == (
        "`w8a8` (w8a8) is chosen: of the 3 of 4 models within 1.5 points of the best (`rl`, 94.0 %), it takes the least time a token at "
        "batch 1 (15.00 ms), in 0.40 of the bytes of `rl`."
    )


def test_the_table_marks_what_is_chosen_and_what_is_dominated():
    lines = render(ALL, 0.02).splitlines()
    assert "| w8a8 | w8a8 | 93.0 % (92.0 to 94.0) | 0.00 M | 0.00 | 15.00 | 440 | 880 | **chosen** |  |" in lines
    assert "dominated by w8a8" in next(line for line in lines if line.startswith("| awq"))
    assert len({line.count("|") for line in lines[:6]}) == 1


def test_evaluations_of_other_models_or_of_other_prompts_are_refused(tmp_path):
    models = {name: publish_model(tmp_path, name, contents=name) for name in ("rl", "heal")}
    evaluations = {name: publish_evaluation(tmp_path, each, rows([True] * 50)) for name, each in models.items()}
    check_same(models, evaluations)
    with pytest.raises(ConfigError, match=r"is not of .*rl as it is now"):
        check_same(models, {"rl": evaluations["heal"], "heal": evaluations["heal"]})
    fewer = publish_evaluation(tmp_path, models["heal"], rows([True] * 40))
    with pytest.raises(ConfigError, match=r"eval-rl and eval-heal asked different prompts: 10 are in one alone, such as prompt-00040"):
        check_same(models, {"rl": evaluations["rl"], "heal": fewer})
    others = publish_evaluation(tmp_path, models["heal"], rows([True] * 60)[10:])  # as many
    with pytest.raises(ConfigError, match="asked different prompts: 20 are in one alone"):
        check_same(models, {"rl": evaluations["rl"], "heal": others})


def test_the_report_shows_the_newest_table_and_its_choice(tmp_path):
    assert newest_choice(str(tmp_path)) is None
    for name, models in (("pareto-old", ALL[:2]), ("pareto", ALL)):
        config = ParetoConfig(run_root=str(tmp_path), name=name, margin=0.02)
        made = make(config, "pareto", {}, lambda _, models=models: {"rows": [row.model_dump(mode="json") for row in models]})
        later = {"created": f"2026-01-01T00:00:0{len(models)}Z"}
        (made.path / "manifest.json").write_text(made.manifest.model_copy(update=later).model_dump_json())
    publish_evaluation(tmp_path, publish_model(tmp_path, "rl"), rows([True] * 50))
    write_report(str(tmp_path), choice=newest_choice(str(tmp_path)))
    page = (tmp_path / "report.html").read_text()
    assert "`w8a8` (w8a8) is chosen: of the 4 of 4 models within 2 points" in page
    assert '<tr class="candidate"><th scope="row">w8a8</th>' in page
    assert "dominated by w8a8" in page
