"""How long a token takes by shape, and cutting to it."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from compress_run import make_run, save_byte_tokenizer, tiny_student
from test_shapes import QWEN_HALF_BILLION, TINY
from tokenizers import Tokenizer, models

from supertiny.artifacts import make
from supertiny.compress.config import LatencyConfig, PruneConfig
from supertiny.compress.dry_run import describe
from supertiny.compress.latency import LATENCY, LatencyModel, MeasuredShape, fit, read_latency, shapes_to_measure
from supertiny.compress.measure_latency import cuts_to_measure, measure_latency, write_random
from supertiny.compress.shapes import Shape, kernel_problems, read_shape
from supertiny.compress.solver import limits_of, solve, target_of
from supertiny.compress.speed import Speed
from supertiny.errors import ConfigError

HALF_BILLION = read_shape(QWEN_HALF_BILLION)
COSTS = {"fixed": 2e-3, "per_layer": 5e-4, "per_channel": 1e-7, "per_row": 6e-8}


def seconds(shape: Shape) -> float:
    """What a machine of these costs would need."""
    feed_forward = shape.intermediate_size * COSTS["per_channel"]
    return COSTS["fixed"] + shape.num_hidden_layers * (COSTS["per_layer"] + feed_forward) + shape.vocab_size * COSTS["per_row"]


def measured(shape: Shape, noise: float = 0.0) -> MeasuredShape:
    sizes = {name: getattr(shape, name) for name in ("vocab_size", "num_hidden_layers", "intermediate_size")}
    return MeasuredShape(**sizes, seconds_per_token=seconds(shape) * (1 + noise))


def model_of(shape: Shape = HALF_BILLION) -> LatencyModel:
    return fit(shape, [measured(each) for each in shapes_to_measure(shape, 1000)])


def test_costs_are_found_from_the_student_and_its_halves():
    found = model_of()
    assert {name: getattr(found, name) for name in COSTS} == pytest.approx(COSTS, rel=1e-6)
    assert found.worst_error < 1e-6
    assert found.seconds_per_token(replace(HALF_BILLION, num_hidden_layers=18)) == pytest.approx(
        seconds(replace(HALF_BILLION, num_hidden_layers=18))
    )


def test_noise_makes_no_cost_negative_and_shows_in_the_worst_error():
    shapes = shapes_to_measure(HALF_BILLION, 1000)
    found = fit(HALF_BILLION, [measured(shape, noise) for shape, noise in zip(shapes, (0, 0.4, -0.2, 0.3, 0), strict=True)])
    assert min(found.fixed, found.per_layer, found.per_channel, found.per_row) >= 0
    assert 0.05 < found.worst_error < 0.4


def test_what_is_measured_is_what_kernels_take_and_an_axis_that_cannot_be_halved_is_left_out():
    shapes = shapes_to_measure(HALF_BILLION, 1000)
    assert [(each.vocab_size, each.num_hidden_layers, each.intermediate_size) for each in shapes] == [
        (151_936, 24, 4864),
        (76_032, 24, 4864),
        (151_936, 12, 4864),
        (151_936, 24, 2432),
        (76_032, 12, 2432),
    ]
    assert all(kernel_problems(each) == [] for each in shapes)
    tiny = read_shape(TINY)
    assert {each.vocab_size for each in shapes_to_measure(tiny, 1007)} == {1024}
    with pytest.raises(ConfigError, match="too small for any cut"):
        shapes_to_measure(replace(tiny, num_hidden_layers=1, intermediate_size=128), 1007)


def test_cuts_of_the_vocabulary_keep_as_many_tokens_as_their_shape_has_rows(tmp_path: Path):
    save_byte_tokenizer(tmp_path)
    shape = read_shape(tiny_student(4, 640).config.to_dict())
    kept = cuts_to_measure(tmp_path, shape)
    assert [(each.vocab_size, ids and len(ids)) for each, ids in kept.items()] == [
        (640, None),
        (384, 384),
        (640, None),
        (640, None),
        (384, 384),
    ]


@pytest.mark.parametrize("kind", ["of another kind", "missing"])
def test_a_student_whose_vocabulary_cannot_be_cut_is_measured_along_the_other_axes(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    if kind == "of another kind":
        Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with caplog.at_level(logging.WARNING):
        kept = cuts_to_measure(tmp_path, HALF_BILLION)
    assert "only layers and channels are cut" in caplog.text
    assert set(kept.values()) == {None}
    assert {(each.vocab_size, each.num_hidden_layers, each.intermediate_size) for each in kept} == {
        (151_936, layers, width) for layers in (24, 12) for width in (4864, 2432)
    }
    found = fit(HALF_BILLION, [measured(each) for each in kept])
    assert (found.per_row, found.per_layer) == (0, pytest.approx(COSTS["per_layer"], rel=1e-6))


@pytest.mark.parametrize("axis", ["vocab", "depth", "width", "vocab+depth"])
def test_a_target_in_seconds_is_met_by_the_largest_shape_that_meets_it(axis: str):
    aim = 0.9 * seconds(HALF_BILLION)
    config = PruneConfig(axis=axis, target_seconds_per_token=aim)
    target = target_of(config, HALF_BILLION, model_of())
    smaller = solve(HALF_BILLION, config.axis, target, limits_of(config))
    assert target.least <= seconds(smaller) <= aim
    one_more = {
        "vocab": replace(smaller, vocab_size=smaller.vocab_size + 128),
        "depth": replace(smaller, num_hidden_layers=smaller.num_hidden_layers + 1),
        "width": replace(smaller, intermediate_size=smaller.intermediate_size + 128),
    }
    assert axis not in one_more or seconds(one_more[axis]) > aim


def test_a_target_in_seconds_needs_latencies_and_those_of_this_student():
    config = PruneConfig(target_seconds_per_token=0.01)
    with pytest.raises(ConfigError, match=r"needs the student's latencies; measure them with jobs/latency\.py"):
        target_of(config, HALF_BILLION)
    with pytest.raises(ConfigError, match=r"another student \(vocab_size, hidden_size.*differ\); run jobs/latency\.py again"):
        target_of(config, HALF_BILLION, model_of(read_shape(TINY)))


def test_a_target_that_no_shape_reaches_names_the_nearest():
    target = target_of(PruneConfig(target_seconds_per_token=1e-4), HALF_BILLION, model_of())
    with pytest.raises(ConfigError, match=r"target_seconds_per_token 0\.0001 .* no width reaches it; the nearest is intermediate_size 128"):
        solve(HALF_BILLION, "width", target)


def test_a_target_in_seconds_says_how_far_the_fit_is_from_what_was_measured():
    model = model_of().model_copy(update={"worst_error": 0.034})
    words = target_of(PruneConfig(target_seconds_per_token=0.01), HALF_BILLION, model).words
    assert words.endswith("seconds, foretold within 3.4% of what was measured")


def test_rows_that_cost_nothing_are_all_kept():
    free = model_of().model_copy(update={"per_row": 0.0})
    config = PruneConfig(axis="vocab+depth", target_seconds_per_token=0.9 * free.seconds_per_token(HALF_BILLION))
    smaller = solve(HALF_BILLION, config.axis, target_of(config, HALF_BILLION, free), limits_of(config))
    assert smaller.vocab_size == HALF_BILLION.vocab_size - 128


def test_a_student_made_again_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    speed = Speed(seconds_per_token=0.01, tokens_per_second={})
    monkeypatch.setattr("supertiny.compress.measure_latency.measure_speed", lambda *_: speed)  # the engine is a seam here
    for num_layers in (4, 2):  # of one key, as where rollouts that were made again leave a cut more tokens
        shutil.rmtree(tmp_path / "sft", ignore_errors=True)
        make_run(tmp_path, "sft", tiny_student(num_layers))
        found = read_latency(measure_latency(LatencyConfig(run_root=str(tmp_path), rounds=1)))
        found.check_student(read_shape(json.loads((tmp_path / "sft" / "config.json").read_text())))


def test_the_dry_run_says_that_latencies_are_missing(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN_HALF_BILLION))
    said = describe(PruneConfig(run_root=str(tmp_path), student=str(tmp_path), target_seconds_per_token=0.01))
    assert said.startswith("no table of shapes: latency: nothing at")


def test_the_dry_run_says_what_a_token_of_every_shape_is_foretold_to_take(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN_HALF_BILLION))

    def build(folder: Path) -> dict[str, object]:
        (folder / LATENCY).write_text(model_of().model_dump_json())
        return {}

    make(LatencyConfig(run_root=str(tmp_path)), "latency", {}, build)
    aim = 0.9 * seconds(HALF_BILLION)
    said = describe(PruneConfig(run_root=str(tmp_path), student=str(tmp_path), axis="depth", target_seconds_per_token=aim))
    _, head, student, *others = said.splitlines()
    assert head.endswith("4-bit MB  ms a token")
    assert student.split()[-1] == f"{1000 * seconds(HALF_BILLION):.3g}"
    (depth,) = [line.split() for line in others if line.startswith("* depth ")]
    fewer = replace(HALF_BILLION, num_hidden_layers=int(depth[3]))
    assert float(depth[-1]) == pytest.approx(1000 * seconds(fewer), rel=5e-3)
    assert float(depth[-1]) <= 1000 * aim


def test_a_student_whose_padding_token_lies_beyond_the_fewer_rows_is_cut_too(tmp_path: Path):
    """TRL writes the tokenizer's into the config that it trains: Qwen2.5's is 151,643, and half of its rows are 76,032."""
    model = tiny_student(1, 512)
    model.config.pad_token_id = 500
    model.save_pretrained(tmp_path / "student")
    save_byte_tokenizer(tmp_path / "student")
    values = json.loads((tmp_path / "student" / "config.json").read_text())
    smaller = replace(read_shape(values), vocab_size=384)
    write_random(tmp_path / "student", tmp_path / "cut", values, smaller, list(range(384)))
    assert read_shape(json.loads((tmp_path / "cut" / "config.json").read_text())) == smaller
