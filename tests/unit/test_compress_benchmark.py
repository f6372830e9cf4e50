from pathlib import Path

import compress
import pytest
from compress import HALF_BILLION, make, row, table


def measured(folder: Path, name: str, size: int, milliseconds: float, rates: dict[int, float]):
    (folder / name).mkdir()
    (folder / name / "model.safetensors").write_bytes(bytes(size))
    return row(folder, name, milliseconds / 1000, rates)


def test_the_table_is_that_of_the_docs_and_says_what_beats_a_model(tmp_path: Path):
    rows = [
        measured(tmp_path, HALF_BILLION, 1_000_000, 57.1, {1: 17.5, 8: 107.4, 32: 160.1}),
        measured(tmp_path, "vocab", 800_000, 53, {1: 18.9, 8: 118.1, 32: 194.1}),
        measured(tmp_path, "depth", 800_000, 45.9, {1: 21.8, 8: 74.6, 32: 96.4}),
        measured(tmp_path, "vocab:w8a8", 800_000, 45.9, {1: 21.8, 8: 74.6, 32: 96.5}),
    ]
    head, *lines = table(rows).splitlines()
    assert head in (Path(__file__).parents[2] / "docs" / "pareto.md").read_text()
    assert lines == [
        "|---|---|---|---|---|---|---|---|---|---|",
        "| half_billion | 151,936 x 24 x 4,864 | 494.0 | 1.0 | 57.1 | 17.5 | 1.00 | 107.4 | 160.1 | vocab |",
        "| vocab | 52,480 x 24 x 4,864 | 404.9 | 0.8 | 53.0 | 18.9 | 1.08 | 118.1 | 194.1 |  |",
        "| depth | 151,936 x 18 x 4,864 | 404.6 | 0.8 | 45.9 | 21.8 | 1.25 | 74.6 | 96.4 | vocab:w8a8 |",
        "| vocab:w8a8 | 52,480 x 24 x 4,864 | 404.9 | 0.8 | 45.9 | 21.8 | 1.25 | 74.6 | 96.5 |  |",
    ]


def test_a_step_that_is_killed_leaves_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    killed = True
    steps = []

    def in_a_process(folder: Path, step: str, name: str, batches: list[int]) -> dict:
        """In place of the step's process: writes a model's first file, and the others where it is not killed."""
        steps.append((step, name, sorted(path.name for path in folder.iterdir())))
        partial = folder / f"{name}.partial"
        partial.mkdir()
        (partial / "config.json").write_text("{}")
        if killed:
            raise SystemExit("killed")
        return {"seconds": 1, "bytes": 1}

    monkeypatch.setattr(compress, "in_a_process", in_a_process)
    with pytest.raises(SystemExit):
        make(tmp_path, HALF_BILLION)
    killed = False
    make(tmp_path, "depth")
    make(tmp_path, "depth")
    assert steps == [("weights", HALF_BILLION, []), ("weights", HALF_BILLION, []), ("cut", "depth", [HALF_BILLION])]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["depth", HALF_BILLION]
