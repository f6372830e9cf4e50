import json
import logging
from pathlib import Path

import pytest

from supertiny.errors import CorruptArtifact, NotFinite
from supertiny.train.checkpoints import CHECKPOINT, checkpoint_folder, newest_good, seal, step_of, take_name
from supertiny.train.metrics import check_finite, keep_until, read_metrics


def write_checkpoint(root: Path, step: int) -> Path:
    folder = checkpoint_folder(root, step)
    (folder / "deepspeed").mkdir(parents=True)
    (folder / "deepspeed" / "state.pt").write_bytes(b"weights and moments" * step)
    seal(folder, step, num_workers=2)
    return folder


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


def test_the_newest_checkpoint_is_taken(tmp_path: Path) -> None:
    for step in (50, 999950, 1000050):
        write_checkpoint(tmp_path, step)
    newest = newest_good(tmp_path)
    assert newest is not None
    assert step_of(newest) == 1000050


def test_an_unfinished_checkpoint_does_not_count(tmp_path: Path) -> None:
    done = write_checkpoint(tmp_path, 50)
    (write_checkpoint(tmp_path, 100) / CHECKPOINT).unlink()
    assert newest_good(tmp_path) == done


def test_a_checkpoint_takes_the_place_of_what_an_earlier_attempt_left_under_its_name(tmp_path: Path) -> None:
    (left := checkpoint_folder(tmp_path, 8)).mkdir()
    (left / "cut short").touch()
    (tmp_path / "checkpoint-8").mkdir()
    (tmp_path / "checkpoint-8" / "model").touch()
    take_name(tmp_path / "checkpoint-8", left)
    assert [path.name for path in left.iterdir()] == ["model"]


def test_without_checkpoints_training_starts_afresh(tmp_path: Path) -> None:
    assert newest_good(tmp_path) is None
    assert newest_good(tmp_path / "absent") is None


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "unreadable note"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    done = write_checkpoint(tmp_path, 50)
    state = write_checkpoint(tmp_path, 100) / "deepspeed" / "state.pt"
    if damage == "flipped":
        flip_a_bit(state)
    elif damage == "truncated":
        state.write_bytes(state.read_bytes()[:-7])
    elif damage == "missing":
        state.unlink()
    else:
        (state.parent.parent / CHECKPOINT).write_text('{"step": 100, "fil')
    with caplog.at_level(logging.WARNING):
        assert newest_good(tmp_path) == done
    assert "DAMAGED CHECKPOINT" in caplog.text
    assert "step-000100" in caplog.text


def test_when_every_checkpoint_is_damaged_the_error_says_what_to_delete(tmp_path: Path) -> None:
    for step in (50, 100):
        flip_a_bit(write_checkpoint(tmp_path, step) / "deepspeed" / "state.pt")
    with pytest.raises(CorruptArtifact, match=f"every checkpoint is damaged; delete {tmp_path}"):
        newest_good(tmp_path)


def test_a_resumed_run_drops_the_metrics_that_it_will_write_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 1 / step}) for step in range(1, 8)]
    path.write_text("\n".join(lines) + '\n{"step": 8, "lo')
    keep_until(path, 5)
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3, 4, 5]
    keep_until(path, 0)
    assert read_metrics(path) == []


def test_a_loss_that_is_no_number_is_named_with_its_rollouts() -> None:
    fine = {"cross_entropy": 1.0, "forward_kl": 0.0, "gradient_norm": 2.0}
    check_finite(fine, "rollouts", ["p1/0"])
    with pytest.raises(NotFinite, match=r"forward_kl not finite in a batch of the rollouts p1/0, p2/1"):
        check_finite({**fine, "forward_kl": float("nan")}, "rollouts", ["p1/0", "p2/1"])
