"""Training whose cluster loses its head: real raylets, a real Redis, a worker a node."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from ray_folder import ray_folder
from started_nodes import Node, StartedNodes
from started_runs import STEPS_A_PASS, StartedRun
from train_runs import finished_checkpoints, training_workers, wait_for

pytestmark = [pytest.mark.soak, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
PASSES, EVERY_STEPS = 150, 20
HEAD_AWAY_SECONDS = 8


@pytest.fixture(scope="module")
def nodes(checkout: Path) -> Iterator[StartedNodes]:
    with ray_folder() as folder, StartedNodes(folder, str(checkout / "platform"), redis=True) as started:
        yield started


@pytest.fixture(scope="module")
def workers(nodes: StartedNodes) -> list[Node]:
    """Room for a training worker each."""
    return nodes.add_workers(2, 1)


def redone(root: Path, before: Sequence[str]) -> int:
    """Steps that were made before and are not in the table as they were then, with the seconds that they took."""
    table = (root / "distill" / "metrics.jsonl").read_text().splitlines()
    return sum(made != line for made, line in zip(table, before, strict=False))


def test_a_training_whose_head_is_lost_goes_on_without_it(nodes: StartedNodes, workers: list[Node], checkout: Path, tmp_path: Path) -> None:
    with StartedRun(checkout, tmp_path, nodes, workers[0], passes=PASSES, checkpoint_every_steps=EVERY_STEPS) as run:
        wait_for(lambda: finished_checkpoints(tmp_path), run.driver)
        before = run.steps()
        nodes.lose(nodes.head)
        time.sleep(HEAD_AWAY_SECONDS)
        without, checkpoint = run.metrics(), max(finished_checkpoints(tmp_path))
        nodes.start_head()
        back, going_on = time.monotonic(), run.steps()
        assert run.finish() == list(range(1, PASSES * STEPS_A_PASS + 1))
    print(
        f"\nthe head lost in training: {len(without) - before} steps in {HEAD_AWAY_SECONDS} s without it, "
        f"{redone(tmp_path, without)} redone; done in one go {time.monotonic() - back:.0f} s after it was back"
    )
    assert before + EVERY_STEPS < checkpoint < len(without) < going_on < PASSES * STEPS_A_PASS
    assert redone(tmp_path, without) == 0


def test_a_training_whose_driver_is_lost_with_the_head_is_run_again_and_goes_on(
    nodes: StartedNodes, workers: list[Node], checkout: Path, tmp_path: Path
) -> None:
    settings = {"passes": PASSES // 3, "checkpoint_every_steps": EVERY_STEPS}
    with StartedRun(checkout, tmp_path, nodes, nodes.head, **settings) as run:
        wait_for(lambda: finished_checkpoints(tmp_path), run.driver)
        wait_for(lambda: run.steps() > max(finished_checkpoints(tmp_path)), run.driver)
    nodes.lose(nodes.head)
    nodes.start_head()
    wait_for(lambda: not training_workers())  # which do not notice at once
    before, began = run.metrics(), time.monotonic()
    with StartedRun(checkout, tmp_path, nodes, nodes.head, **settings) as again:
        wait_for(lambda: again.steps() > len(before), again.driver)
        seconds = time.monotonic() - began
        assert again.finish() == list(range(1, PASSES // 3 * STEPS_A_PASS + 1))
    again_made = redone(tmp_path, before)
    print(
        f"\nthe head and its driver lost: {len(before)} steps made, {again_made} redone, past them {seconds:.0f} s after it was run again"
    )
    assert again_made <= EVERY_STEPS
