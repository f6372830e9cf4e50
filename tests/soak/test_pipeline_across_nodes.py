"""The demo's whole chain on three nodes: a head without work, and a worker each of the groups `teacher` and `train`, as in cluster/."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from day import every
from pipeline_runs import Driver
from ray_folder import ray_folder
from started_nodes import Node, StartedNodes
from train_runs import name_of

from supertiny.artifacts import read_alias

SECTIONS = {
    "teacher": ["rollout.layout", "evaluate"],
    "train": ["distill", "rl", "heal", *(f"{stage}.place" for stage in ("prune", "awq", "w8a8"))],
}
PLACES = [f'{section}.labels={{"supertiny/group"="{group}"}}' for group, sections in SECTIONS.items() for section in sections]
SEEN_BY = {
    "rollout": "supertiny.rollout.worker",
    "evaluation": "ray::Evaluator",
    "training": "RayTrainWorker",
    "prune": "ray::prune",
    "quantization": "ray::quantize",
    "parity": "ray::prove",
}
"""What a process is called that does a stage's work."""


class Work:
    """The groups of nodes on which each stage's processes were seen."""

    def __init__(self, nodes: dict[str, Node]) -> None:
        self._nodes = nodes
        self.groups: dict[str, set[str]] = {stage: set() for stage in SEEN_BY}

    def look(self) -> None:
        """At every process there is now."""
        for group, node in self._nodes.items():
            names = [name_of(each) for each in node.family()]
            for stage, mark in SEEN_BY.items():
                if any(mark in name for name in names):
                    self.groups[stage].add(group)


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_demo_s_pipeline_runs_across_three_nodes_to_its_promotion(checkout: Path, tmp_path: Path) -> None:
    path, root = os.pathsep.join([str(checkout / "platform"), str(checkout / "tests")]), tmp_path / "run"
    folder = ray_folder()
    with folder, StartedNodes(folder.name, path) as nodes:
        workers = {group: nodes.add_workers(1, 2, group=group)[0] for group in SECTIONS}
        work = Work({"head": nodes.head, **workers})
        began = time.monotonic()
        driver = Driver(checkout, root, tmp_path / "log", nodes.address, *PLACES)
        with every(0.2, work.look):
            status, log = driver.finish(900)
    assert status == 0, log[-3000:]
    print(f"\nthe pipeline on three nodes: promoted after {time.monotonic() - began:.0f} s; {work.groups}")
    expected = {"teacher": ("rollout", "evaluation", "parity"), "train": ("training", "prune", "quantization")}
    assert work.groups == {stage: {group} for group, stages in expected.items() for stage in stages}
    report = json.loads((root / "report.json").read_text())
    assert read_alias("student@production", str(root)).manifest.name == report["gate"]["candidate"]
