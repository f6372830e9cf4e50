"""The whole chain as a user runs it: killed in the middle of rollout and of distillation, and run again to its end."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import ray
from pipeline_runs import Driver

from supertiny.artifacts import open_artifact, read_alias
from supertiny.config import load
from supertiny.errors import SupertinyError
from supertiny.pipeline.config import PipelineConfig
from supertiny.pipeline.run import run
from supertiny.rollout.blocks import finished_names
from supertiny.rollout_table import read_rejected, read_rollouts

pytestmark = pytest.mark.ray


@pytest.fixture
def address(local_ray: None) -> str:
    """The session's Ray."""
    return str(ray.get_runtime_context().gcs_address)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_pipeline_killed_in_rollout_and_in_distill_ends_as_if_nothing_had_happened(checkout: Path, address: str, tmp_path: Path) -> None:
    root = tmp_path / "run"
    first = Driver(checkout, root, tmp_path / "1.log", address)
    first.kill_when(lambda: any(len(finished_names(done)) >= 3 for done in root.glob(".rollouts.*.partial/.done")))
    assert not (root / "rollouts").exists()

    second = Driver(checkout, root, tmp_path / "2.log", address)
    log = second.kill_when(lambda: list(root.glob(".distill.*.partial/.train/workers/step-*/checkpoint.json")))
    made_before = int(re.findall(r"(\d+) made before", log)[0])
    assert 3 * 16 <= made_before < 320
    rollouts_before = file_times(root / "rollouts")
    steps_before = next(root.glob(".distill.*.partial/metrics.jsonl")).read_text().splitlines()

    status, log = Driver(checkout, root, tmp_path / "3.log", address).finish()
    assert status == 0, log[-3000:]
    assert file_times(root / "rollouts") == rollouts_before
    assert "rollouts: already made" in log
    steps = (root / "distill" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in steps] == list(range(1, len(steps) + 1))
    going_on_after = int(re.findall(r"going on after step (\d+)", log)[0])
    assert 5 <= going_on_after <= len(steps_before)
    assert steps[:going_on_after] == steps_before[:going_on_after]  # with the seconds that they took then: none was done again

    folder = open_artifact("rollouts", str(root), "rollouts").path
    ids = [rollout.rollout_id for rollout in [*read_rollouts(folder), *read_rejected(folder)]]
    assert len(ids) == len(set(ids)) == 320

    report = json.loads((root / "report.json").read_text())
    assert [stage["name"] for stage in report["stages"]] == ["teacher", "base", "distill", "rl", "prune", "heal", "awq", "w8a8"]
    rounds = {name: [each["model"] for each in recovery["rounds"]] for name, recovery in report["recoveries"].items()}
    assert rounds == {"recovery": ["prune", "heal"], "recovery-aware": [report["gate"]["candidate"]]}
    assert report["gate"]["candidate"] in ("awq", "w8a8")
    assert report["gate"]["verdict"] == "pass"
    assert read_alias("student@production", str(root)).manifest.name == report["gate"]["candidate"]
    table = open_artifact("pareto", str(root), "pareto").manifest.metrics
    assert report["recoveries"]["recovery"]["model"] in ("prune", "heal")  # whichever was better on so few prompts
    assert [row["name"] for row in table["rows"]] == ["rl", report["recoveries"]["recovery"]["model"], "awq", "w8a8"]
    assert report["choice"]["why"] == table["why"]
    assert table["model"] == report["gate"]["candidate"]
    proof = open_artifact("parity", str(root), "parity").manifest
    assert (proof.metrics["verdict"], proof.parents["model"].uri) == ("pass", report["gate"]["candidate"])
    sizes = {stage["name"]: stage for stage in report["stages"]}
    candidate = sizes[report["gate"]["candidate"]]
    assert candidate["parameters"] <= 0.85 * sizes["rl"]["parameters"]
    assert candidate["bytes"] <= 0.6 * sizes["rl"]["bytes"]

    promoted, made = read_alias("student@production", str(root)), file_times(root / "w8a8")
    status, log = Driver(checkout, root, tmp_path / "4.log", address, "gate.margin=0.001", "aware.heal.epochs=0.5").finish()
    assert status == 1
    assert "error: GateNotPassed: " in log
    report = json.loads((root / "report.json").read_text())
    trained = report["recoveries"]["recovery-aware"]
    best = open_artifact("pareto", str(root), "pareto").manifest.metrics["model"]  # measured again, since none passes now
    assert [each["model"] for each in trained["rounds"]] == [best, f"{best}-1"]
    assert (report["gate"]["candidate"], report["gate"]["verdict"] == "pass") == (trained["model"], False)
    assert report["choice"]["model"] == trained["model"]
    assert read_alias("student@production", str(root)) == promoted
    assert file_times(root / "w8a8") == made


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("teacher=/nowhere/teacher", "nothing at /nowhere/teacher"),
        ("base=nothing", "nothing at"),
        ("distill.num_workers=64", "64 training workers need 64 logical CPUs, the cluster has 8"),
        ("rollout.layout.num_engines=16", "rollout needs 17 CPUs"),
        ("pareto.place.num_cpus=64", "pareto needs 64 CPUs"),
    ],
)
def test_what_cannot_work_is_said_before_anything_heavy_starts(
    checkout: Path, local_ray: None, tmp_path: Path, override: str, message: str
) -> None:
    extra = ["distill.batch=512"] if "num_workers" in override else []
    config = load(PipelineConfig, checkout / "jobs/configs/demo/pipeline.toml", [f"run_root={tmp_path / 'run'}", override, *extra])
    with pytest.raises(SupertinyError, match=message):
        run(config)
    assert not (tmp_path / "run").exists()


def file_times(folder: Path) -> dict[str, int]:
    """When each file of a folder was last written, ns."""
    return {path.name: path.stat().st_mtime_ns for path in sorted(folder.iterdir())}
