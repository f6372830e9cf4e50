"""The report of a run: `report.json` and a self-contained `report.html`, from what its artifacts say and nothing else."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from supertiny.artifacts import MANIFEST, PACKAGE, Artifact, Manifest, open_artifact, read_manifest, write_atomically
from supertiny.cost import MachinePrice, machine_price, usd_per_thousand_correct
from supertiny.errors import ConfigError, MissingInput
from supertiny.evaluate.curves import read_curves
from supertiny.evaluate.page import render_page
from supertiny.evaluate.schema import (
    QUANTIZED,
    TRANSFERS,
    Ab,
    Choice,
    EvaluationMetrics,
    GateMetrics,
    GateResult,
    Recovery,
    Report,
    Stage,
)
from supertiny.records import Parity

STAGES = ("teacher", "base", *TRANSFERS, "prune", "heal", *QUANTIZED)
"""The chain's models, in the order of those that stand at one place of it; others come after them."""
PACKAGES = ("ray", "vllm", "torch", "transformers", "trl", "deepspeed", "llmcompressor", "supertiny")
EVALUATION = "eval-"
log = logging.getLogger(__name__)


def write_report(
    run_root: str,
    *,
    prices: str | None = None,
    gate: str = "gate",
    ab: Ab | None = None,
    choice: Choice | None = None,
    more_seconds: Mapping[str, float] | None = None,
) -> Report:
    """The run's report, written into `run_root` as `report.json` and `report.html`.

    Costs are worked out anew from the seconds that the evaluations measured, so that a changed price needs no new evaluation.

    Args:
        prices: price table (TOML); None takes the checkout's.
        gate: name of the gate's artifact; the report goes without where there is none yet.
        ab: what the traffic showed, once something was served.
        choice: models measured against each other, once they were.
        more_seconds: time of whatever left no artifact, by name, such as `serve`.

    Raises:
        MissingInput: the run has no evaluation.
        ConfigError: the evaluations ran on different machines, or the price table lacks theirs.
    """
    report = build_report(run_root, prices=prices, gate=gate, ab=ab, choice=choice, more_seconds=more_seconds)
    root = Path(run_root).expanduser().absolute()
    write_atomically(root / "report.json", report.model_dump_json(indent=2) + "\n")
    write_atomically(root / "report.html", render_page(report))
    log.info("report: %s", root / "report.html")
    return report


def build_report(
    run_root: str, *, prices: str | None, gate: str, ab: Ab | None, choice: Choice | None, more_seconds: Mapping[str, float] | None
) -> Report:
    """The report as data; arguments and errors are those of `write_report`."""
    root = Path(run_root).expanduser().absolute()
    published = published_in(root)
    evaluations = {
        name.removeprefix(EVALUATION): open_artifact(name, run_root, "evaluation")
        for name, manifest in published.items()
        if manifest.kind == "evaluation"
    }
    if not evaluations:
        raise MissingInput(f"{run_root}: no evaluation was published there, so there is nothing to report")
    metrics = {name: EvaluationMetrics.model_validate(one.manifest.metrics) for name, one in evaluations.items()}
    price = common_price(metrics, prices)
    made_by = published.get(gate) or list(published.values())[-1]
    return Report(
        stages=[
            _stage(name, evaluations[name], metrics[name], price) for name in sorted(metrics, key=lambda name: _place(name, published))
        ],
        gate=_gate(open_artifact(gate, run_root, "gate")) if gate in published else None,
        parity=_parity(published[gate], published) if gate in published else None,
        ab=ab,
        choice=choice,
        recoveries={name: _recovery(manifest) for name, manifest in published.items() if manifest.kind == "recovery"},
        seconds={**{name: each.seconds for name, each in published.items() if each.kind != "recovery"}, **(more_seconds or {})},
        curves={name: curves for name in published if (curves := read_curves(root / name))},
        versions=versions(),
        git_revision=made_by.git_revision,
        price=price,
        concurrency=min(one.concurrency for one in metrics.values()),
        date=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def published_in(root: Path) -> dict[str, Manifest]:
    """Every published artifact right below a folder, oldest first; working folders start with a dot and are left out."""
    folders = sorted(path.parent for path in root.glob(f"[!.]*/{MANIFEST}"))
    manifests = {folder.name: read_manifest(folder) for folder in folders}
    return dict(sorted(manifests.items(), key=lambda item: item[1].created))


def common_price(metrics: Mapping[str, EvaluationMetrics], prices: str | None) -> MachinePrice:
    """Today's price of the machine that every evaluation ran on.

    Raises:
        ConfigError: they ran on several.
    """
    machines = {one.price.machine: name for name, one in metrics.items()}
    if len(machines) > 1:
        ran = ", ".join(f"{name} on {machine}" for machine, name in machines.items())
        raise ConfigError(f"the evaluations ran on different machines ({ran}); their times and costs do not compare: evaluate again on one")
    return machine_price(next(iter(machines)), prices)


def versions() -> dict[str, str]:
    """Installed versions of what the numbers depend on; vLLM's CPU build goes by another name."""
    return {name: _version(name) or _version(f"{name}-cpu") or "not installed" for name in PACKAGES}


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _place(name: str, published: Mapping[str, Manifest]) -> tuple[bool, int, int, str]:
    """The teacher first, then by the number of stages behind a model: a curriculum may have any order."""
    behind, model = 0, published.get(name)
    while model and "student" in model.parents:
        behind, model = behind + 1, published.get(model.parents["student"].uri)
    return (name != "teacher", behind, STAGES.index(name) if name in STAGES else len(STAGES), name)


def _stage(name: str, evaluation: Artifact, metrics: EvaluationMetrics, price: MachinePrice) -> Stage:
    shared = metrics.model_dump(include=set(Stage.model_fields) & set(EvaluationMetrics.model_fields))
    shared["usd_per_thousand_correct"] = usd_per_thousand_correct(metrics.seconds_per_prompt, metrics.exact_match.value, price)
    uri = evaluation.manifest.parents["model"].uri
    model_uri = uri if uri.startswith(PACKAGE) else str(evaluation.path.parent / uri)
    return Stage.model_validate({"name": name, "model_uri": model_uri, **shared})


def _gate(artifact: Artifact) -> GateResult:
    metrics = GateMetrics.model_validate(artifact.manifest.metrics)
    return GateResult(
        candidate=metrics.candidate.evaluation.removeprefix(EVALUATION),
        baseline=metrics.baseline.evaluation.removeprefix(EVALUATION),
        margin=metrics.margin,
        confidence=metrics.confidence,
        difference=metrics.difference,
        slices=metrics.slices,
        verdict=metrics.verdict,
        n=metrics.candidate.exact_match.n,
    )


def _recovery(manifest: Manifest) -> Recovery:
    asked = {key: manifest.config[key] for key in ("baseline", "margin")}
    found = {key: manifest.metrics[key] for key in ("rounds", "ended", "model")}
    return Recovery.model_validate({**asked, **found})


def _parity(gate: Manifest, published: Mapping[str, Manifest]) -> Parity | None:
    """The newest proof of the model that a gate judged."""
    judged = GateMetrics.model_validate(gate.metrics).candidate.model
    proofs = [each for each in published.values() if each.kind == "parity" and each.parents["model"].sha256 == judged.sha256]
    return Parity.model_validate(proofs[-1].metrics) if proofs else None
