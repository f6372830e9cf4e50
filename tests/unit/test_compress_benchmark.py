from pathlib import Path

import compress
import pytest
from compress import HALF_BILLION, Pairs, describe, make, ratios, table


def measured(folder: Path, name: str, size: int, *milliseconds: tuple[float, float]) -> Pairs:
    """Pairs of milliseconds a token, the uncut model's first, the same with 1, 8 and 32 requests in flight but 8 and 16 times as short."""
    (folder / name).mkdir()
    (folder / name / "model.safetensors").write_bytes(bytes(size))
    return {
        batch: [(uncut / 1000 / over, ours / 1000 / over) for uncut, ours in milliseconds] for batch, over in ((1, 1), (8, 8), (32, 16))
    }


def test_the_table_is_that_of_the_docs_and_says_what_beats_a_model(tmp_path: Path):
    measured(tmp_path, HALF_BILLION, 1_000_000, (80, 80))
    pairs = {
        "vocab": measured(tmp_path, "vocab", 800_000, (60, 50), (66, 60), (69, 60)),
        "depth": measured(tmp_path, "depth", 800_000, (80, 40), (100, 50)),
        "vocab:w8a8": measured(tmp_path, "vocab:w8a8", 700_000, (84, 50), (84, 40), (84, 43)),
    }
    head, *lines = table(tmp_path, pairs).splitlines()
    assert head in (Path(__file__).parents[2] / "docs" / "pareto.md").read_text()
    assert lines == [
        "|---|---|---|---|---|---|---|---|---|---|---|",
        "| half_billion | 151,936 x 24 x 4,864 | 494.0 | 1.0 | 82.0 | 1.00 | 98 | 1.00 | 195 | 1.00 | depth |",
        "| vocab | 52,480 x 24 x 4,864 | 404.9 | 0.8 | 60.0 | 1.15 (1.10 to 1.20) | 133 | 1.15 | 267 | 1.15 | depth |",
        "| depth | 151,936 x 18 x 4,864 | 404.6 | 0.8 | 45.0 | 2.00 (2.00 to 2.00) | 178 | 2.00 | 356 | 2.00 |  |",
        "| vocab:w8a8 | 52,480 x 24 x 4,864 | 404.9 | 0.7 | 43.0 | 1.95 (1.68 to 2.10) | 186 | 1.95 | 372 | 1.95 |  |",
    ]


def test_a_ratio_is_of_pairs_measured_side_by_side_so_that_a_slow_minute_changes_none():
    quiet, slow = [(60.0, 50.0)] * 5, [(120.0, 100.0)] * 4
    assert describe([*quiet, *slow]) == "1.20 (1.20 to 1.20)"


def test_the_best_mix_is_of_several_axes_and_the_best_of_all_of_any():
    over = {"depth": 1.3, "vocab:w8a8": 2.0, "vocab+depth": 1.2, "vocab+depth:w8a8": 1.9}
    assert ratios(over) == {"depth_vs_half_billion": 1.3, "best_vs_half_billion": 1.9, "best_of_all_vs_half_billion": 2.0}
    assert ratios({"depth": 1.3}) == {"depth_vs_half_billion": 1.3, "best_of_all_vs_half_billion": 1.3}


def test_a_model_that_is_none_is_refused_before_any_is_made(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(compress, "make", lambda *_: pytest.fail("a model was made"))
    for name in ("foo", "vocab:fp8", "vocab:", ":w8a8"):
        monkeypatch.setattr("sys.argv", ["compress.py", "--models", "vocab", name])
        with pytest.raises(SystemExit):
            compress.main()
        assert f"--models {name}: expected half_billion or a cut (vocab, " in capsys.readouterr().err


def test_a_step_that_is_killed_leaves_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    killed = True
    steps = []

    def in_a_process(folder: Path, step: str, name: str, *more: str) -> dict:
        """In place of the step's process: writes a model's first file, and the others where it is not killed."""
        assert more == ("--rows", "256")
        steps.append((step, name, sorted(path.name for path in folder.iterdir())))
        partial = folder / f"{name}.partial"
        partial.mkdir()
        (partial / "config.json").write_text("{}")
        if killed:
            raise SystemExit("killed")
        return {"seconds": 1, "bytes": 1}

    monkeypatch.setattr(compress, "in_a_process", in_a_process)
    with pytest.raises(SystemExit):
        make(tmp_path, HALF_BILLION, 256)
    killed = False
    make(tmp_path, "depth", 256)
    make(tmp_path, "depth", 256)
    assert steps == [("weights", HALF_BILLION, []), ("weights", HALF_BILLION, []), ("cut", "depth", [HALF_BILLION])]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["depth", HALF_BILLION]
