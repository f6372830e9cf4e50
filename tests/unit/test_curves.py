"""Training curves in the report."""

import json
from pathlib import Path

from test_report import Page, publish, publish_run

from supertiny.evaluate.curves import read_curves, thin
from supertiny.evaluate.page import render_page
from supertiny.evaluate.report import write_report

HISTORY = [
    {"step": step, "loss": 1 / step, "cross_entropy": 0.5 / step, "tokens": 100, "seconds": 0.1, "tokens_per_second": 1000.0}
    for step in range(1, 401)
]


def test_few_steps_are_kept_one_by_one() -> None:
    curves = thin(HISTORY[:3])
    assert curves.steps == [1, 2, 3]
    assert curves.metrics == {"loss": [1, 0.5, 0.33333], "cross_entropy": [0.5, 0.25, 0.16667], "tokens_per_second": [1000, 1000, 1000]}


def test_many_steps_become_means_over_stretches() -> None:
    curves = thin([{"step": step, "loss": step} for step in range(1, 8)], points=3)
    assert (curves.steps, curves.metrics["loss"]) == ([3, 6, 7], [2, 5, 7])
    assert len(thin(HISTORY).steps) == 200


def test_a_metric_that_is_measured_now_and_then_has_gaps() -> None:
    curves = thin([{"step": 1, "loss": 1}, {"step": 2, "loss": 1, "validation_exact_match": 0.75}])
    assert curves.metrics["validation_exact_match"] == [None, 0.75]


def test_an_artifact_without_metrics_by_step_has_no_curves(tmp_path: Path) -> None:
    assert read_curves(tmp_path) is None


def test_the_page_shows_the_curves_of_every_training_stage(tmp_path: Path) -> None:
    publish_run(tmp_path)
    publish(tmp_path, "distill", 900)
    (tmp_path / "distill" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in HISTORY))
    rl = [{"step": 1, "loss": 0, "reward": 0.5, "reward_verifier": 0.5, "kl": 0.0, "entropy": 0.2, "completion_tokens": 12}]
    (tmp_path / "rl" / "metrics.jsonl").write_text(json.dumps(rl[0]) + "\n")
    page = render_page(write_report(str(tmp_path)))
    seen = Page(page)
    assert seen.tags["svg"] == 7
    assert "training-distill-" in page
    assert any(label.startswith("distill, 400 steps. loss from 0.75 to 0.002") for label in seen.labels)
    assert any("reward_verifier from 0.5 to 0.5" in label for label in seen.labels)
