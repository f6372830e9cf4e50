"""Jobs as a shell sees them: three flags, what is printed where, the exit status."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from supertiny.cli import JsonLines

JOB = '''
"""Count to a number.

python jobs/count.py --set number=3
"""

import sys

from pydantic import Field

from supertiny import errors
from supertiny.cli import run_job
from supertiny.config import StageConfig


class CountConfig(StageConfig):
    """Counting."""

    name: str = "count"
    """Name."""
    number: int = Field(3, gt=0)
    """How far."""
    failure: str = ""
    """The error to end with."""


def main(config: CountConfig) -> None:
    print("counted to", config.number, file=sys.stderr)
    if config.failure:
        raise getattr(errors, config.failure, RuntimeError)("the reason")


if __name__ == "__main__":
    raise SystemExit(run_job(CountConfig, main, default="jobs/configs/count.toml"))
'''


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job in a checkout of its own, with a default config."""
    folder = tmp_path_factory.mktemp("checkout") / "jobs"
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "count.toml").write_text('number = 5\nrun_root = "/runs/of/mine"\n')
    path = folder / "count.py"
    path.write_text(JOB)
    return path


def test_a_job_without_flags_runs_its_default_config_and_prints_it_with_where_outputs_go(job: Path) -> None:
    ran = _run(job)
    assert ran.returncode == 0
    assert json.loads(ran.stdout)["number"] == 5
    assert "outputs in /runs/of/mine" in ran.stderr
    assert "counted to 5" in ran.stderr


def test_a_cluster_s_logs_are_json_a_line(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERTINY_LOG_FORMAT", "json")
    (line,) = [line for line in _run(job).stderr.splitlines() if "outputs in" in line]
    said = json.loads(line)
    assert (said["level"], said["logger"]) == ("INFO", "supertiny")
    assert said["message"].endswith("outputs in /runs/of/mine")
    assert said["time"].endswith("+00:00")


def test_an_exception_is_in_the_line_that_logs_it() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record = logging.LogRecord("a", logging.ERROR, __file__, 1, "it %s", ("failed",), sys.exc_info())
    line = JsonLines().format(record)
    assert "\n" not in line
    assert json.loads(line)["message"] == "it failed"
    assert "ValueError: two" in json.loads(line)["exception"]


def test_the_config_that_is_given_replaces_the_default_and_set_wins_over_both(job: Path, tmp_path: Path) -> None:
    config = tmp_path / "other.toml"
    config.write_text('number = 7\nname = "other"\n')
    ran = _run(job, "--config", str(config), "--set", "number=8", "--set", "number=9")
    printed = json.loads(ran.stdout)
    assert (ran.returncode, printed["number"], printed["name"]) == (0, 9, "other")


def test_a_dry_run_prints_the_config_and_runs_nothing(job: Path) -> None:
    ran = _run(job, "--dry-run", "--set", "failure=SupertinyError")
    assert (ran.returncode, json.loads(ran.stdout)["failure"]) == (0, "SupertinyError")
    assert "counted" not in ran.stderr


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_misspelt_key_ends_with_2_before_anything_runs(job: Path, dry_run: bool) -> None:
    ran = _run(job, "--set", "numbr=1", *(["--dry-run"] if dry_run else []))
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.endswith("count.toml is not a valid CountConfig: numbr: no such key; did you mean number?\n")
    assert ran.stderr.startswith("error: ")
    assert "counted" not in ran.stderr


def test_a_missing_config_file_ends_with_2(job: Path) -> None:
    ran = _run(job, "--config", "nowhere.toml")
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: nowhere.toml: no such config file (looked from ")


def test_an_unknown_flag_and_an_abbreviated_one_end_with_2(job: Path) -> None:
    assert _run(job, "--number", "3").returncode == 2
    assert _run(job, "--dry").returncode == 2


@pytest.mark.parametrize(("failure", "status"), [("ConfigError", 2), ("PlanTooBig", 1), ("CorruptArtifact", 1)])
def test_an_error_of_ours_is_one_line_without_a_traceback(job: Path, failure: str, status: int) -> None:
    ran = _run(job, "--set", f"failure={failure}")
    assert ran.returncode == status
    kind = "" if status == 2 else f"{failure}: "
    assert ran.stderr.splitlines()[-1] == f"error: {kind}the reason"
    assert "Traceback" not in ran.stderr


def test_an_error_that_nobody_foresaw_keeps_its_traceback_and_ends_with_1(job: Path) -> None:
    ran = _run(job, "--set", "failure=Unforeseen")
    assert ran.returncode == 1
    assert "Traceback" in ran.stderr
    assert "RuntimeError: the reason" in ran.stderr


def test_help_shows_the_jobs_own_words_and_its_three_flags(job: Path) -> None:
    ran = _run(job, "--help")
    assert ran.returncode == 0
    assert "python jobs/count.py --set number=3" in ran.stdout
    assert [word for word in ("--config", "--set", "--dry-run") if f"  {word}" not in ran.stdout] == []


def test_the_default_config_is_found_from_any_folder(job: Path, tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, str(job), "--dry-run"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert json.loads(ran.stdout)["number"] == 5


def _run(job: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, job.name, *flags], cwd=job.parent, capture_output=True, text=True, check=False, timeout=60)
