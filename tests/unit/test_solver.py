import json
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_shapes import QWEN_HALF_BILLION, TINY

from supertiny.compress.config import AXES, PruneConfig
from supertiny.compress.dry_run import describe
from supertiny.compress.shapes import Shape, kernel_problems, read_shape
from supertiny.compress.solver import Limits, solve, target_of
from supertiny.errors import ConfigError, MissingInput

JOB = Path(__file__).parents[2] / "jobs" / "prune.py"


def solved(values: dict, axis: str, limits: Limits = Limits(), **target) -> Shape:  # noqa: B008 - frozen
    shape = read_shape(values)
    return solve(shape, axis, target_of(PruneConfig(axis=axis, **target), shape), limits)


def every_cut(shape: Shape, axis: str, workers: int) -> list[Shape]:
    """All smaller shapes along an axis that kernels take, the plain way."""
    sizes = {
        "vocab_size": range(256, shape.vocab_size, 128) if "vocab" in axis else [shape.vocab_size],
        "num_hidden_layers": range(1, shape.num_hidden_layers) if "depth" in axis else [shape.num_hidden_layers],
        "intermediate_size": range(128, shape.intermediate_size, 128) if "width" in axis else [shape.intermediate_size],
    }
    cuts = (replace(shape, **dict(zip(sizes, each, strict=True))) for each in product(*sizes.values()))
    return [cut for cut in cuts if not kernel_problems(cut, workers) and cut.vocab_size % (128 * workers) == 0]


@pytest.mark.parametrize(
    ("axis", "sizes"),
    [
        ("width", (151_936, 24, 3456)),
        ("depth", (151_936, 18, 4864)),
        ("vocab", (53_632, 24, 4864)),
        ("vocab+depth", (136_832, 19, 4864)),
        ("vocab+depth+width", (135_808, 21, 4352)),
    ],
)
def test_half_a_billion_to_four_tenths_along_an_axis(axis: str, sizes: tuple[int, int, int]):
    smaller = solved(QWEN_HALF_BILLION, axis, target_parameters=406_000_000)
    assert (smaller.vocab_size, smaller.num_hidden_layers, smaller.intermediate_size) == sizes


@pytest.mark.parametrize("axis", AXES)
def test_every_axis_and_mix_brings_half_a_billion_to_four_tenths(axis: str):
    smaller = solved(QWEN_HALF_BILLION, axis, target_parameters=406_000_000, tolerance_fraction=0.03)
    assert smaller.num_parameters == pytest.approx(0.40e9, rel=0.015)
    assert kernel_problems(smaller) == []


def test_a_target_in_bytes_is_one_of_bfloat16():
    assert solved(QWEN_HALF_BILLION, "depth", target_bytes=812_000_000) == solved(QWEN_HALF_BILLION, "depth", target_parameters=406_000_000)


@given(st.integers(2, 40), st.floats(0.05, 0.99))
def test_solved_width_is_a_multiple_of_128_and_no_wider_one_fits(multiple: int, fraction: float):
    values = {**TINY, "intermediate_size": 128 * multiple}
    shape = read_shape(values)
    try:
        smaller = solved(values, "width", target_parameters_fraction=fraction, tolerance_fraction=0.99)
    except ConfigError:
        smallest = read_shape({**TINY, "intermediate_size": 128})
        assert smallest.num_parameters > int(fraction * shape.num_parameters)
    else:
        assert smaller.intermediate_size % 128 == 0
        assert smaller.num_parameters <= fraction * shape.num_parameters
        wider = read_shape({**TINY, "intermediate_size": smaller.intermediate_size + 128})
        assert wider.intermediate_size == shape.intermediate_size or wider.num_parameters > int(fraction * shape.num_parameters)


@given(st.sampled_from(AXES), st.floats(0.3, 0.95), st.integers(1, 2))
def test_what_is_solved_meets_the_target_and_cuts_every_axis_named(axis: str, fraction: float, workers: int):
    shape = read_shape(TINY)
    target = target_of(PruneConfig(axis=axis, target_parameters_fraction=fraction), shape)
    try:
        smaller = solve(shape, axis, target, Limits(tensor_parallel_size=workers))
    except ConfigError:
        assert not [cut for cut in every_cut(shape, axis, workers) if target.least <= cut.num_parameters <= target.most]
        return
    assert target.least <= smaller.num_parameters <= target.most
    assert (smaller.vocab_size < shape.vocab_size) == ("vocab" in axis)
    assert (smaller.num_hidden_layers < shape.num_hidden_layers) == ("depth" in axis)
    assert (smaller.intermediate_size < shape.intermediate_size) == ("width" in axis)
    assert kernel_problems(smaller, workers) == []


def test_the_student_need_not_please_the_kernels_where_nothing_is_cut():
    values = {**TINY, "vocab_size": 1001}
    assert solved(values, "depth").vocab_size == 1001


THREE_WORKERS = {
    **{"model_type": "llama", "vocab_size": 1152, "hidden_size": 576, "intermediate_size": 1024, "num_hidden_layers": 4},
    **{"num_attention_heads": 9, "num_key_value_heads": 3},
}


@pytest.mark.parametrize(
    ("axis", "size", "uncut"),
    [("depth", "intermediate_size", "intermediate_size 1024"), ("depth+width", "vocab_size", "padded vocab_size 1024")],
)
def test_a_size_that_workers_cannot_share_has_to_be_cut(axis: str, size: str, uncut: str):
    values = {**THREE_WORKERS, "vocab_size": 1152 if size == "intermediate_size" else 1000}
    limits, settings = Limits(tensor_parallel_size=3), {"target_parameters_fraction": 0.8, "tolerance_fraction": 0.5}
    with pytest.raises(
        ConfigError, match=f"no {axis.replace('+', '.')} reaches it; the nearest is none: 3 workers do not divide {uncut}, which"
    ):
        solved(values, axis, limits, **settings)
    cut = solved(values, "vocab+depth+width", limits, **settings)
    assert (cut.intermediate_size % 384, cut.vocab_size % 384) == (0, 0)


def test_a_target_below_every_shape_names_the_nearest():
    with pytest.raises(ConfigError, match=r"0\.1 .*nearest is num_hidden_layers 1 \(0\.308\)"):
        solved(TINY, "depth", target_parameters_fraction=0.1, tolerance_fraction=0.05)


def test_a_step_coarser_than_the_tolerance_names_the_nearest():
    with pytest.raises(ConfigError, match=r"nearest is num_hidden_layers 3 \(0\.769\) or"):
        solved(TINY, "depth", target_parameters_fraction=0.95, tolerance_fraction=0.1)


def test_a_single_layer_has_nothing_left_to_remove():
    with pytest.raises(ConfigError, match="nothing is left to remove"):
        solved({**TINY, "num_hidden_layers": 1}, "depth", target_parameters_fraction=0.5)


def test_tokens_that_have_to_stay_bound_the_vocabulary():
    with pytest.raises(ConfigError, match=r"nearest is vocab_size 896 \("):
        solved(TINY, "vocab", Limits(smallest_vocab=800), target_parameters_fraction=0.95, tolerance_fraction=0.02)
    with pytest.raises(ConfigError, match="1000 of 1024 tokens have to stay"):
        solved(TINY, "vocab", Limits(smallest_vocab=1000), target_parameters_fraction=0.95)


@pytest.mark.parametrize(
    ("values", "limits", "said"),
    [
        (
            TINY,
            Limits(1007, vocab_size=896),
            r"nothing is left to remove, 1007 of 1024 tokens have to stay \(every byte\) and vocabularies go in steps of 128",
        ),
        (
            TINY,
            Limits(700, "every word", vocab_size=640),
            r"no room for the 700 tokens that have to stay \(every word\); take 768, or more by 128",
        ),
        (
            TINY,
            Limits(800, vocab_size=640, tensor_parallel_size=2),
            "800 of 1024 tokens have to stay .* and vocabularies go in steps of 256",
        ),
        (
            QWEN_HALF_BILLION,
            Limits(vocab_size=52_352, tensor_parallel_size=2),
            r"vocab_size 52352 is no size below the student's 151936 that kernels take \(256 to 151808, by 256\)",
        ),
    ],
)
def test_a_vocabulary_that_cannot_be_taken_is_refused_with_what_can_be(values: dict, limits: Limits, said: str):
    with pytest.raises(ConfigError, match=said):
        solved(values, "vocab", limits, target_parameters_fraction=0.8)


def test_a_size_that_is_named_is_taken_and_the_others_meet_the_target():
    smaller = solved(QWEN_HALF_BILLION, "vocab+depth", Limits(num_hidden_layers=20), target_parameters=406_000_000)
    assert smaller.num_hidden_layers == 20
    assert smaller.vocab_size == 120_192


@pytest.mark.parametrize(
    ("axis", "sizes"), [("width", (151_936, 24, 4608)), ("depth+width", (151_936, 23, 4736)), ("vocab+depth+width", (151_680, 23, 4864))]
)
def test_an_embedding_width_is_taken_and_the_axes_meet_the_target(axis: str, sizes: tuple[int, int, int]):
    smaller = solved(QWEN_HALF_BILLION, axis, Limits(hidden_size=768), target_parameters=406_000_000)
    assert (smaller.hidden_size, smaller.num_attention_heads) == (768, 12)
    assert (smaller.vocab_size, smaller.num_hidden_layers, smaller.intermediate_size) == sizes
    assert kernel_problems(smaller) == []


def test_feed_forwards_may_stay_as_they_are_where_the_embedding_is_narrower():
    smaller = solved(QWEN_HALF_BILLION, "width", Limits(hidden_size=768), target_parameters_fraction=0.9)
    assert (smaller.hidden_size, smaller.intermediate_size) == (768, 4864)
    assert smaller == solved(QWEN_HALF_BILLION, "width", Limits(hidden_size=768, intermediate_size=4864), target_parameters_fraction=0.9)


def test_an_embedding_width_that_misses_the_target_is_named():
    with pytest.raises(ConfigError, match=r"no width reaches it; the nearest is hidden_size 640, intermediate_size 4864 \(0\.6"):
        solved(QWEN_HALF_BILLION, "width", Limits(hidden_size=640), target_parameters_fraction=0.95)
    with pytest.raises(ConfigError, match="hidden_size 700: possible are"):
        solved(QWEN_HALF_BILLION, "width", Limits(hidden_size=700))


def test_workers_share_the_heads_that_a_narrower_embedding_leaves(tmp_path: Path):
    values = {**QWEN_HALF_BILLION, "hidden_size": 1152, "num_attention_heads": 18}
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = PruneConfig(student=str(tmp_path), tensor_parallel_size=4, hidden_size=1024, tolerance_fraction=0.5)
    lines = describe(config).splitlines()
    assert next(line for line in lines if line.startswith("* width")).split()[5] == "1,024"
    assert any(line.startswith("depth: ") and "4 workers do not divide 18 heads, which a cut of the depth leaves" in line for line in lines)
    with pytest.raises(
        ConfigError, match=r"hidden_size 896: possible are .* among 4 workers in shares that kernels take; the nearest is 1024 or 512"
    ):
        describe(config.model_copy(update={"hidden_size": 896}))


@pytest.mark.parametrize(("workers", "width", "nearest"), [(1, 700, ["640", "768"]), (2, 700, ["768", "512"]), (4, 700, ["512"])])
def test_an_embedding_width_that_is_named_as_the_nearest_can_be_taken(workers: int, width: int, nearest: list[str]):
    with pytest.raises(ConfigError) as refused:
        solved(QWEN_HALF_BILLION, "width", Limits(hidden_size=width, tensor_parallel_size=workers))
    assert str(refused.value).rpartition("the nearest is ")[2].split(" or ") == nearest
    for each in map(int, nearest):
        limits = Limits(hidden_size=each, tensor_parallel_size=workers)
        assert solved(QWEN_HALF_BILLION, "width", limits, target_parameters_fraction=0.5, tolerance_fraction=0.49).hidden_size == each


def test_workers_that_can_share_the_heads_of_no_embedding_width_are_blamed_themselves():
    with pytest.raises(ConfigError, match=r"tensor_parallel_size 3: 3 workers do not divide 14 heads and .*, which no axis changes"):
        solved(QWEN_HALF_BILLION, "width", Limits(hidden_size=768, tensor_parallel_size=3))


def test_of_two_sizes_that_are_named_the_wrong_one_is_blamed():
    limits = Limits(vocab_size=50_048, num_hidden_layers=30)
    with pytest.raises(
        ConfigError, match=r"none: num_hidden_layers 30 is no size below the student's 24 that kernels take \(1 to 23, by 1\)$"
    ):
        solved(QWEN_HALF_BILLION, "vocab+depth", limits)


def test_a_size_that_is_no_multiple_is_refused():
    with pytest.raises(ConfigError, match="intermediate_size 3400 is no size below the student's"):
        solved(QWEN_HALF_BILLION, "width", Limits(intermediate_size=3400), target_parameters=406_000_000)


def test_a_dry_run_prints_the_table_of_a_config_without_its_weights(tmp_path: Path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(QWEN_HALF_BILLION))
    settings = [f"student={path}", "axis=depth", "target_parameters_fraction=0.82"]
    command = [sys.executable, str(JOB), "--dry-run", *(part for setting in settings for part in ("--set", setting))]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stderr
    lines = [line.split() for line in printed.splitlines()]
    assert ["student", "151,936", "24", "4,864", "494,032,768", "1.000", "988.1"] in [line[:7] for line in lines]
    assert ["*", "depth", "151,936", "18", "4,864", "404,558,464"] in [line[:6] for line in lines]
    assert ["vocab", "52,608"] in [line[:2] for line in lines]


def test_a_dry_run_shows_the_embedding_width_where_it_is_cut(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN_HALF_BILLION))
    lines = describe(PruneConfig(student=str(tmp_path), hidden_size=768, target_parameters=406_000_000)).splitlines()
    assert lines[1].split()[:6] == ["axis", "vocab", "layers", "width", "embedding", "parameters"]
    cells = {" ".join(line.split()[:2]): line.split()[2:] for line in lines[2:]}
    assert cells["* width"][:5] == ["151,936", "24", "4,608", "768", "404,583,168"]
    assert cells["student 151,936"][:4] == ["24", "4,864", "896", "494,032,768"]
    assert "embedding" not in describe(PruneConfig(student=str(tmp_path)))


def test_a_format_whose_groups_do_not_divide_a_width_has_no_size(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({**QWEN_HALF_BILLION, "hidden_size": 576, "head_dim": 64}))
    student = next(line for line in describe(PruneConfig(student=str(tmp_path), axis="depth")).splitlines() if line.startswith("student"))
    assert student.split()[-1] == "-"
    assert float(student.split()[-2]) > 0


def test_a_format_whose_groups_do_not_divide_a_workers_share_has_no_size(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN_HALF_BILLION))
    lines = {
        workers: describe(PruneConfig(student=str(tmp_path), axis="depth", tensor_parallel_size=workers)).splitlines() for workers in (1, 2)
    }
    sizes = {workers: next(line.split()[-1] for line in each if line.startswith("student")) for workers, each in lines.items()}
    assert sizes == {1: "458.3", 2: "-"}


@pytest.mark.parametrize("target", ["target_parameters=405000000", "target_bytes=810000000"])
def test_each_target_can_be_set_on_the_shipped_config(tmp_path: Path, target: str):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(QWEN_HALF_BILLION))
    settings = [f"student={path}", "axis=depth", target]
    command = [sys.executable, str(JOB), "--dry-run", *(part for setting in settings for part in ("--set", setting))]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stderr
    assert ["*", "depth", "151,936", "18", "4,864", "404,558,464"] in [line.split()[:6] for line in printed.splitlines()]


def test_a_dry_run_refuses_workers_that_no_cut_can_give_whole_heads(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN_HALF_BILLION))
    with pytest.raises(ConfigError, match="4 workers do not divide 14 heads"):
        describe(PruneConfig(student=str(tmp_path), tensor_parallel_size=4))


def test_a_dry_run_of_a_student_that_cannot_be_cut_ends_as_the_cut_would(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    ran = subprocess.run(
        [sys.executable, str(JOB), "--dry-run", "--set", f"student={tmp_path}"], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 2
    assert "error: cannot compress a model of model_type 'gpt2'; supported: llama, qwen2, qwen3" in ran.stderr


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"axis": "vocab", "target_parameters_fraction": 0.8}, "no vocab reaches it; the nearest is vocab_size 256"),
        (
            {"axis": "width", "intermediate_size": 640, "target_parameters_fraction": 0.8},
            "no width reaches it; the nearest is intermediate_size 640",
        ),
    ],
)
def test_a_dry_run_whose_own_axis_does_not_reach_the_target_fails_after_the_table(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, settings: dict, problem: str
):
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    with caplog.at_level("INFO"), pytest.raises(ConfigError, match=problem):
        describe(PruneConfig(student=str(tmp_path), **settings))
    (table,) = caplog.messages
    assert ["depth", "1,024", "3", "768"] in [line.split()[:4] for line in table.splitlines()]
    assert f"{settings['axis']}: target_parameters_fraction 0.8" in table


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ({"target_parameters": 600_000_000}, "target_parameters 600,000,000 is not below the student's own 494,032,768 parameters"),
        (
            {"target_bytes": 988_065_536},
            "target_bytes 988,065,536 is not below the student's own 988,065,536 bytes: there is nothing to cut",
        ),
    ],
)
def test_a_target_that_the_student_meets_as_it_is_is_refused(target: dict[str, int], problem: str):
    with pytest.raises(ConfigError, match=problem):
        target_of(PruneConfig(**target), read_shape(QWEN_HALF_BILLION))


def test_a_target_in_bytes_is_refused_where_the_cut_would_have_other_weights(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({**TINY, "dtype": "float32"}))
    with pytest.raises(ConfigError, match="target_bytes counts two bytes a parameter, and a cut of this student stays float32"):
        describe(PruneConfig(student=str(tmp_path), axis="depth", target_bytes=6_000_000))
    describe(PruneConfig(student=str(tmp_path), axis="depth", target_parameters=2_700_000))


def test_a_config_of_any_file_name_has_its_table(tmp_path: Path):
    (tmp_path / "half.json").write_text(json.dumps(QWEN_HALF_BILLION))
    assert "494,032,768" in describe(PruneConfig(student=str(tmp_path / "half.json"), axis="depth"))


def test_a_path_where_no_config_can_be_read_is_an_error(tmp_path: Path):
    with pytest.raises(MissingInput, match=r"no config\.json there"):
        describe(PruneConfig(student=str(tmp_path)))
    with pytest.raises(MissingInput, match=r"half\.json: nothing at"):
        describe(PruneConfig(student=str(tmp_path / "half.json")))
    (tmp_path / "model" / "config.json").mkdir(parents=True)
    with pytest.raises(MissingInput, match="cannot be read: Is a directory"):
        describe(PruneConfig(student=str(tmp_path / "model")))


def test_a_dry_run_of_a_student_that_is_not_made_yet_says_so(tmp_path: Path):
    assert "no table of shapes: sft: nothing at" in describe(PruneConfig(run_root=str(tmp_path)))
