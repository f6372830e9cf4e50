"""The Ray that `make demo` and `make serve` start: real, used by a submitted job, and gone afterwards."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from supertiny.errors import NoProgress
from supertiny.pipeline.local_cluster import local_cluster, submit_job

OWNER = """
import time
from supertiny.pipeline.local_cluster import local_cluster
with local_cluster(1):
    print("up", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_a_submitted_job_ends_with_its_own_status_and_nothing_of_the_cluster_stays(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = tempfile.mkdtemp()  # sockets lie in it
    monkeypatch.setattr("tempfile.tempdir", short)
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "runtime_env.yaml").write_text((checkout / "cluster" / "runtime_env.yaml").read_text())
    before = set(psutil.Process().children(recursive=True))
    with local_cluster(2) as cluster:
        assert set(psutil.Process().children(recursive=True)) > before
        assert submit_job(cluster, tmp_path, ["python", "-c", "import supertiny"]) == 0
        assert submit_job(cluster, tmp_path, ["python", "-c", "raise SystemExit(3)"]) != 0
    assert set(psutil.Process().children(recursive=True)) <= before
    Path(short).rmdir()  # it is empty


def test_a_ray_that_does_not_start_says_so_with_its_own_words() -> None:
    with pytest.raises(NoProgress, match=r"(?s)Ray did not start \(exit status \d+\):.*must be nonnegative"), local_cluster(-1):
        pytest.fail("it started")


@pytest.mark.slow
def test_a_cluster_ends_with_the_process_that_started_it_even_by_sigkill() -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "up\n"
    family = psutil.Process(owner.pid).children(recursive=True)
    assert any("raylet" in process.name() for process in family)
    owner.kill()
    owner.wait()
    assert not psutil.wait_procs(family, timeout=60)[1]
