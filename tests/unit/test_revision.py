"""Which code runs is said, and that it is not the one beside the job, where it is not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from supertiny.revision import IMPORTED, code_hash, other_code_beside


@pytest.fixture
def other_checkout(tmp_path: Path) -> Path:
    """A checkout whose package differs by a line from the one that is imported."""
    package = tmp_path / "platform" / "supertiny"
    shutil.copytree(IMPORTED, package, ignore=shutil.ignore_patterns("models", "__pycache__"))
    (package / "cost.py").write_text((package / "cost.py").read_text() + "# changed\n")
    return tmp_path


def test_the_hash_is_of_names_and_contents_and_of_nothing_else(tmp_path: Path) -> None:
    package = tmp_path / "supertiny"
    shutil.copytree(IMPORTED, package, ignore=shutil.ignore_patterns("models"))
    assert code_hash(package) == code_hash()
    (package / "notes.txt").write_text("not code")
    assert code_hash(package) == code_hash()
    (package / "new.py").write_text("")
    assert code_hash(package) != code_hash()


def test_the_imported_checkout_and_a_copy_of_it_are_the_same_code(tmp_path: Path, checkout: Path) -> None:
    shutil.copytree(IMPORTED, tmp_path / "platform" / "supertiny", ignore=shutil.ignore_patterns("models"))
    assert other_code_beside(checkout) is None
    assert other_code_beside(tmp_path) is None
    assert other_code_beside(tmp_path / "nothing here") is None


def test_another_checkout_than_the_image_s_is_told_with_both(other_checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERTINY_REVISION", "f00d")
    said = other_code_beside(other_checkout)
    assert said is not None
    assert "the image's revision f00d" in said
    assert code_hash() in said
    assert code_hash(other_checkout / "platform" / "supertiny") in said
    assert "cluster/runtime_env.yaml" in said


def test_a_job_says_at_its_start_that_the_code_beside_it_does_not_run(other_checkout: Path, checkout: Path) -> None:
    (other_checkout / "jobs").mkdir()
    job = shutil.copy(checkout / "jobs" / "promote.py", other_checkout / "jobs")
    ran = subprocess.run([sys.executable, job, "--dry-run"], capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 0
    assert "NOT the code beside the job" in ran.stderr
    ours = subprocess.run([sys.executable, str(checkout / "jobs" / "promote.py"), "--dry-run"], capture_output=True, text=True, timeout=60)
    assert "NOT the code" not in ours.stderr
    assert f"code {code_hash()}" in ours.stderr
