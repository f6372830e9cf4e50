"""A stage that is one process, and an evaluation, whose node is lost while it works: real raylets, the real jobs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from compress_run import make_run, tiny_student
from ray_folder import ray_folder
from started_nodes import StartedNodes
from train_runs import name_of, wait_for

from supertiny.artifacts import open_artifact

pytestmark = [pytest.mark.soak, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
PLACE = '{"supertiny/group"="compress"}'
PRUNE = ["prune.py", "--set", "tolerance_fraction=0.5", "--set", f"place={{labels={PLACE}}}"]
EVALUATE = ["eval.py", "--set", "model=package://supertiny.tasks.assistant/models/base", "--set", f"labels={PLACE}"]
EVALUATE += [word for each in ("num_prompts=64", "latency_prompts=8", "concurrency=64") for word in ("--set", each)]


@pytest.fixture(scope="module")
def nodes(checkout: Path) -> Iterator[StartedNodes]:
    path = os.pathsep.join([str(checkout / "platform"), str(checkout / "tests")])
    with ray_folder() as folder, StartedNodes(folder, path) as started:
        yield started


@pytest.mark.parametrize(
    ("job", "process", "made"),
    [(PRUNE, "ray::prune", ("prune", "model")), (EVALUATE, "ray::Evaluator.measure", ("eval-base", "evaluation"))],
    ids=["stage", "evaluation"],
)
def test_it_is_begun_again_on_the_node_that_comes_for_it(
    job: list[str], process: str, made: tuple[str, str], nodes: StartedNodes, checkout: Path, tmp_path: Path
) -> None:
    make_run(tmp_path, "sft", tiny_student())
    (node,) = nodes.add_workers(1, 2, group="compress")
    script, *flags = job
    driver = nodes.start_driver(nodes.head, [str(checkout / "jobs" / script), *flags, "--set", f"run_root={tmp_path}"], tmp_path / "log")
    try:
        wait_for(lambda: any(process in name_of(each) for each in node.family()), driver)
        nodes.lose(node)
        lost = time.monotonic()
        (other,) = nodes.add_workers(1, 2, group="compress")
        assert driver.wait(240) == 0, (tmp_path / "log").read_text()[-4000:]
    finally:
        driver.kill()
    seconds = time.monotonic() - lost
    nodes.lose(other)
    name, kind = made
    assert "its node or process was lost, beginning again" in (tmp_path / "log").read_text()
    assert open_artifact(name, str(tmp_path), kind).manifest.name == name
    print(f"\n{name}: published {seconds:.0f} s after the loss")
