import io
import json
import math
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from evaluation_artifacts import publish_evaluation, publish_model, publish_proof, rows
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from rich.console import Console

from supertiny.artifacts import Artifact, make, open_artifact
from supertiny.config import StageConfig, validate
from supertiny.errors import ConfigError, MissingInput
from supertiny.evaluate import phrases
from supertiny.evaluate.config import GateConfig
from supertiny.evaluate.gate import gate
from supertiny.evaluate.labels import place_labels
from supertiny.evaluate.page import render_page
from supertiny.evaluate.report import write_report
from supertiny.evaluate.schema import Ab, Arm, Report
from supertiny.evaluate.table import render_ab_table, render_table
from supertiny.records import Parity

ARM = {"requests": 200, "failed": 1, "latency_seconds": {"p50": 0.06, "p95": 0.12}, "usd_per_thousand_requests": 0.0007}
AB = Ab.model_validate({"control": {**ARM, "requests": 210}, "treatment": ARM})
STAGE_KEYS = {
    "name",
    "model_uri",
    "parameters",
    "bytes",
    "exact_match",
    "completion_tokens_mean",
    "latency_seconds",
    "usd_per_thousand_correct",
}


def publish(run_root: Path, name: str, num_right: int, **seconds: float) -> Artifact:
    system = "teacher" if name == "teacher" else "student"
    judged = rows([index < num_right for index in range(1000)])
    return publish_evaluation(run_root, publish_model(run_root, name, contents=name), judged, system=system, seconds=seconds)


def publish_run(run_root: Path, candidate_right: int = 965) -> None:
    """A chain of four models, evaluated out of order, with its gate."""
    publish(run_root, "awq", candidate_right, p50=0.02, each=0.004)
    publish(run_root, "rl", 968, p50=0.021)
    publish(run_root, "base", 600, p50=0.021)
    publish(run_root, "teacher", 970, p50=0.06, each=0.016)
    gate(GateConfig(run_root=str(run_root), candidate="eval-awq"))


class Page(HTMLParser):
    """Collects what a page refers to, its ids and its labels."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.labels: list[str] = []
        self.tags: Counter[str] = Counter()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note one element."""
        self.tags[tag] += 1
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name in ("href", "src", "xlink:href", "data", "action", "srcset"):
                self.references.append(value or "")
            elif name == "aria-label":
                self.labels.append(value or "")


def test_the_json_has_every_promised_key_and_reads_back(tmp_path: Path) -> None:
    publish_run(tmp_path)
    report = write_report(str(tmp_path), ab=AB, more_seconds={"serve": 108.0})
    read = json.loads((tmp_path / "report.json").read_text())
    assert Report.model_validate(read) == report
    assert read.keys() >= {"stages", "gate", "ab", "seconds", "versions", "git_revision"}
    assert all(stage.keys() >= STAGE_KEYS for stage in read["stages"])
    assert read["stages"][0]["exact_match"].keys() == {"value", "low", "high", "n"}
    assert read["stages"][0]["latency_seconds"].keys() == {"p50", "p95"}
    assert read["gate"].keys() >= {"candidate", "baseline", "margin", "difference", "verdict"}
    assert read["gate"]["difference"].keys() == {"value", "low", "high"}
    assert read["ab"]["control"].keys() >= {"requests", "failed", "latency_seconds", "usd_per_thousand_requests"}
    assert read["versions"].keys() == {"ray", "vllm", "torch", "transformers", "trl", "deepspeed", "llmcompressor", "supertiny"}
    assert re.match(r"\d+\.\d+", read["versions"]["vllm"])
    assert {"awq", "eval-awq", "gate", "serve"} <= read["seconds"].keys()


def test_stages_stand_in_the_order_of_the_chain_and_the_gate_names_them(tmp_path: Path) -> None:
    publish_run(tmp_path)
    report = write_report(str(tmp_path))
    assert [stage.name for stage in report.stages] == ["teacher", "base", "rl", "awq"]
    assert report.gate is not None
    assert (report.gate.candidate, report.gate.baseline, report.gate.verdict, report.gate.n) == ("awq", "teacher", "pass", 1000)
    assert report.ab is None


def test_a_stages_model_is_named_so_that_it_can_be_found_again(tmp_path: Path) -> None:
    shipped = open_artifact("package://supertiny.tasks.assistant/models/base", str(tmp_path), "model")
    publish_evaluation(tmp_path, shipped, rows([True] * 1000))
    publish(tmp_path, "awq", 965)
    stages = {stage.name: stage.model_uri for stage in write_report(str(tmp_path)).stages}
    assert stages == {"base": "package://supertiny.tasks.assistant/models/base", "awq": str(tmp_path / "awq")}


def test_stages_of_another_curriculum_stand_in_their_own_order(tmp_path: Path) -> None:
    publish_run(tmp_path)
    publish(tmp_path, "distill", 950)
    for child, parent in (("rl", "base"), ("distill", "rl"), ("awq", "distill")):
        manifest = tmp_path / child / "manifest.json"
        values = json.loads(manifest.read_text())
        manifest.write_text(json.dumps({**values, "parents": {"student": {"uri": parent, "sha256": ""}}}))
    assert [stage.name for stage in write_report(str(tmp_path)).stages] == ["teacher", "base", "rl", "distill", "awq"]


@pytest.mark.parametrize("transfer", ["sft", "on_policy"])
def test_the_size_is_compared_with_the_student_that_was_cut_whatever_made_it(transfer: str, tmp_path: Path) -> None:
    for name in ("teacher", "base", transfer, "awq"):
        publish(tmp_path, name, 960)
    gate(GateConfig(run_root=str(tmp_path), candidate="eval-awq"))
    write_report(str(tmp_path))
    assert f" of {transfer}, with " in (tmp_path / "report.html").read_text()


def test_a_changed_price_needs_no_new_evaluation(tmp_path: Path) -> None:
    publish_run(tmp_path)
    table = tmp_path / "prices.toml"
    table.write_text('[m7i-large]\ndescription = "mine"\nusd_per_hour = 3.60\nas_of = "2026-11-01"\nsource = "my invoice"\n')
    report = write_report(str(tmp_path), prices=str(table))
    assert report.stages[-1].usd_per_thousand_correct == pytest.approx(1000 * 0.004 * 3.60 / 3600 / 0.965)
    assert report.price.source == "my invoice"
    assert "my invoice" in (tmp_path / "report.html").read_text()


def test_times_on_different_machines_do_not_compare(tmp_path: Path) -> None:
    publish_run(tmp_path)
    manifest = tmp_path / "eval-rl" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"machine": "m7i-large"', '"machine": "l4"'))
    with pytest.raises(ConfigError, match=r"different machines .*rl on l4"):
        write_report(str(tmp_path))


def test_a_run_without_evaluations_has_nothing_to_report(tmp_path: Path) -> None:
    publish_model(tmp_path, "awq")
    with pytest.raises(MissingInput, match="no evaluation"):
        write_report(str(tmp_path))


def test_the_page_needs_nothing_from_outside_and_its_ids_are_unique(tmp_path: Path) -> None:
    publish_run(tmp_path)
    page = render_page(write_report(str(tmp_path), ab=AB))
    seen = Page(page)
    assert all(reference.startswith("#") for reference in seen.references)
    assert {reference[1:] for reference in seen.references} <= set(seen.ids)
    assert not re.findall(r"url\((?!#)|@import|https?://", page)
    assert not {"script", "link", "img", "iframe"} & seen.tags.keys()
    assert [name for name, times in Counter(seen.ids).items() if times > 1] == []
    assert seen.tags["svg"] == 5


def test_every_plot_says_its_numbers_to_whoever_cannot_see_it(tmp_path: Path) -> None:
    publish_run(tmp_path)
    labels = Page(render_page(write_report(str(tmp_path)))).labels
    assert len(labels) == 5
    assert "Quality against latency. teacher 97.0 % at 60.0 ms" in labels[0]
    assert "out_of_scope" in labels[2]


def test_what_comes_from_outside_is_escaped(tmp_path: Path) -> None:
    publish_run(tmp_path)
    report = write_report(str(tmp_path)).model_copy(update={"git_revision": "<script>alert(1)</script>"})
    assert "<script" not in render_page(report)


@pytest.mark.parametrize(
    ("num_right", "verdict", "headline"),
    [
        (965, "pass", "awq may replace the teacher pipeline"),
        (925, "inconclusive", "awq is not shown to be good enough to replace the teacher pipeline"),
        (870, "fail", "awq must not replace the teacher pipeline"),
    ],
)
def test_the_verdict_is_said_in_words(tmp_path: Path, num_right: int, verdict: str, headline: str) -> None:
    publish_run(tmp_path, num_right)
    report = write_report(str(tmp_path))
    page = render_page(report)
    assert headline in page
    assert f'class="verdict {verdict}"' in page
    assert report.gate is not None
    assert f"{verdict.capitalize()}: " in phrases.explanation(report.gate)


def test_the_page_says_whether_what_is_served_is_what_was_evaluated(tmp_path: Path) -> None:
    publish_run(tmp_path)
    publish_proof(tmp_path, open_artifact("rl", str(tmp_path), "model"), [], "parity-rl")
    report = write_report(str(tmp_path))
    assert report.parity is None  # that was another model's
    assert "has not been proven" in render_page(report)
    awq = open_artifact("awq", str(tmp_path), "model")
    publish_proof(tmp_path, awq, [])
    said = "What vLLM serves is what was evaluated: KL 2.5e-06 nats a token and the same likeliest token at 100.0 % of 640 positions"
    assert said in render_page(write_report(str(tmp_path)))
    publish_proof(tmp_path, awq, ["rollout 7/0: vLLM and Hugging Face make different tokens of it"], "parity-again")
    assert "is not what was evaluated: rollout 7/0" in render_page(write_report(str(tmp_path)))


def test_a_proof_says_that_tokenizer_and_template_were_not_compared() -> None:
    numbers = {"kl_nats": 0, "greedy_agreement": 1, "positions": 9, "tokenizer_sha256": "0", "template_sha256": "0"}
    found = Parity(verdict="pass", problems=[], **numbers)
    assert "compared" not in phrases.proof(found, "awq")
    said = phrases.proof(found.model_copy(update={"not_compared": "heal is gone"}), "awq")
    assert said.endswith(
        " positions, between vLLM and Hugging Face. Its tokenizer and template were not compared with those of a model "
        "before it: heal is gone."
    )


def test_a_proof_without_a_number_is_reported(tmp_path: Path) -> None:
    publish_run(tmp_path)
    awq = open_artifact("awq", str(tmp_path), "model")
    publish_proof(tmp_path, awq, ["KL nan nats a token is over max_kl_nats 0.005"], kl_nats=float("nan"))
    assert "is not what was evaluated: KL nan nats a token is over" in render_page(write_report(str(tmp_path)))
    again = Report.model_validate_json((tmp_path / "report.json").read_text())
    assert again.parity is not None
    assert (again.parity.verdict, math.isnan(again.parity.kl_nats)) == ("fail", True)


def test_a_run_without_a_gate_is_reported_so_far(tmp_path: Path) -> None:
    publish(tmp_path, "teacher", 970)
    report = write_report(str(tmp_path))
    assert report.gate is None
    assert "No gate has been run yet" in render_page(report)
    assert render_table(report).row_count == 1


def test_a_model_that_gets_nothing_right_and_one_that_gets_all_can_be_drawn(tmp_path: Path) -> None:
    publish(tmp_path, "base", 0)
    publish(tmp_path, "rl", 1000)
    report = write_report(str(tmp_path))
    assert report.stages[0].usd_per_thousand_correct is None
    assert phrases.NOTHING in render_page(report)


def test_the_terminal_table_has_the_same_numbers(tmp_path: Path) -> None:
    publish_run(tmp_path)
    silent = Arm(requests=0, failed=0, latency_seconds=None, usd_per_thousand_requests=None)
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(render_table(write_report(str(tmp_path))))
    console.print(render_ab_table(AB.model_copy(update={"treatment": silent})))
    text = console.export_text()
    (awq,) = [line for line in text.splitlines() if "awq" in line and "│" in line]
    assert [cell.strip() for cell in awq.strip("│ ").split("│")] == [
        *("awq", "96.5 %", "95.2 to 97.5", "20.0", "20.0 ms", "80.0 ms", "$0.116", "3.40 M", "6.80 MB"),
    ]
    assert "Gate: On the same 1,000 held-out prompts" in text
    cells = {line.strip("│ ").split("│")[0].strip(): line.strip("│ ").split("│")[1:] for line in text.splitlines() if "│" in line}
    assert [cell.strip() for cell in cells["control: teacher pipeline"]] == ["210", "1", "–", "60.0 ms", "120 ms", "$0.700"]  # noqa: RUF001
    assert [cell.strip() for cell in cells["treatment: student"]] == ["0", "0", "–", "–", "–", "–"]  # noqa: RUF001


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0053, "5.3 ms"), (0.0426, "42.6 ms"), (0.31, "310 ms"), (1.314, "1.31 s"), (95.2, "95 s"), (750, "12.5 min")]
)
def test_durations_have_a_fitting_unit(seconds: float, text: str) -> None:
    assert phrases.duration(seconds) == text


@pytest.mark.parametrize(
    ("per_thousand", "text"),
    [(0.0000712, "$0.0712"), (0.0021, "$2.10"), (0.25, "$250"), (1.25, "$1,250"), (0.0, "$0.00"), (None, phrases.NOTHING)],
)
def test_costs_are_a_million_answers_with_three_digits(per_thousand: float | None, text: str) -> None:
    assert phrases.usd_per_million(per_thousand) == text


def test_labels_of_points_in_one_place_do_not_cover_each_other() -> None:
    figure = Figure(figsize=(4, 3))
    axes = figure.add_subplot()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    names = ["distill", "rl", "heal", "awq"]
    place_labels(axes, names, [(0.5, 0.5)] * 4, [(0.45, 0.55)] * 4, ["black"] * 4)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes = [Text.get_window_extent(text, renderer) for text in axes.texts]  # an annotation's own adds its line
    assert [text.get_text() for text in axes.texts] == names
    assert not any(one.overlaps(other) for index, one in enumerate(boxes) for other in boxes[:index])


class HealingConfig(StageConfig):
    """What a recovery's manifest says that it was asked for."""

    baseline: str = "eval-rl"
    margin: float = 0.02


def publish_recovery(run_root: Path, name: str, values: list[float], ended: str) -> None:
    """Rounds that lose so much, each with an interval of two points, and 1.5 million tokens apart."""
    rounds = [
        {
            "model": f"heal-{at}" if at else "heal",
            "tokens": 1_500_000 * at,
            "exact_match": 0.95 + value,
            "difference": {"value": value, "low": value - 0.01, "high": value + 0.01},
            "verdict": "pass" if value > -0.01 else "fail",
        }
        for at, value in enumerate(values)
    ]
    found = {"rounds": rounds, "ended": ended, "model": rounds[-1]["model"]}
    make(HealingConfig(run_root=str(run_root), name=name), "recovery", {}, lambda _: found)


def test_the_page_shows_what_every_round_of_healing_gave_and_why_it_ended(tmp_path: Path) -> None:
    publish_run(tmp_path)
    publish_recovery(tmp_path, "recovery", [-0.05, -0.005], "enough")
    publish_recovery(tmp_path, "recovery-aware", [-0.05], "rounds")
    report = write_report(str(tmp_path))
    page = render_page(report)
    assert "2 points of exact match may be lost against rl. heal-1 went on: the whole interval of its loss lies within them." in page
    assert "heal went on: no round was surely within them, and it is the best of those that were to be made." in page
    assert '<tr class="candidate"><th scope="row">heal-1</th><td>1,500,000</td><td>94.5 %</td>' in page
    seen = Page(page)
    (label,) = [label for label in seen.labels if label.startswith("recovery")]
    assert label.startswith("recovery: heal −5.0 points (−6.0 to −4.0) after 0 tokens; heal-1 −0.5 points")  # noqa: RUF001
    assert seen.tags["svg"] == 6  # one round is no plot
    assert [name for name, times in Counter(seen.ids).items() if times > 1] == []


def test_a_recovery_s_time_is_that_of_its_rounds(tmp_path: Path) -> None:
    publish_run(tmp_path)
    publish_recovery(tmp_path, "recovery", [-0.05], "rounds")
    assert "recovery" not in write_report(str(tmp_path)).seconds


def test_a_report_that_lacks_a_key_is_refused(tmp_path: Path) -> None:
    publish_run(tmp_path)
    report = json.loads(write_report(str(tmp_path)).model_dump_json())
    del report["versions"]
    with pytest.raises(ValueError, match="versions"):
        Report.model_validate(report)


def test_the_gates_defaults_are_the_ones_of_the_method() -> None:
    config = validate(GateConfig, {}, "test")
    assert (config.margin, config.confidence, config.min_prompts, config.baseline) == (0.05, 0.95, 1000, "eval-teacher")
