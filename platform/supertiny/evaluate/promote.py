"""Promotion: point an alias at the model whose gate passed, and at no other."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path

from supertiny.artifacts import Artifact, Parent, alias_path, open_artifact, write_atomically
from supertiny.errors import GateNotPassed
from supertiny.evaluate.config import PromoteConfig
from supertiny.evaluate.schema import GateMetrics

log = logging.getLogger(__name__)


def promote(config: PromoteConfig) -> Artifact:
    """The gate's candidate, which the alias names from now on.

    Every move is kept in `aliases/<alias>.history.jsonl`, the newest last. To roll back, promote the gate of the line before.

    Raises:
        GateNotPassed: the verdict is not `pass`, the model is not the one that was evaluated, or the proof that `parity` names failed or is
            of another model; the alias stays where it is.
    """
    gate = open_artifact(config.gate, config.run_root, "gate")
    metrics = GateMetrics.model_validate(gate.manifest.metrics)
    if metrics.verdict != "pass":
        gap = metrics.difference
        raise GateNotPassed(
            f"{gate.path}: the verdict is {metrics.verdict}: the difference is {100 * gap.value:+.1f} points "
            f"[{100 * gap.low:+.1f}, {100 * gap.high:+.1f}] and its low end must be above {-100 * metrics.margin:+.1f}; "
            f"{config.alias} stays where it is"
        )
    evaluated = metrics.candidate.model
    model = open_artifact(evaluated.uri, config.run_root, "model")
    if model.as_parent().sha256 != evaluated.sha256:
        raise GateNotPassed(f"{model.path} is not the model that {config.gate} judged: it was made again since; evaluate and gate it again")
    if config.parity is not None:
        check_parity(open_artifact(config.parity, config.run_root, "parity"), model)
    move_alias(config.alias, config.run_root, model, gate)
    return model


def check_parity(proof: Artifact, model: Artifact) -> None:
    """Check that a proof passed and is this model's.

    Raises:
        GateNotPassed: it failed, or is of another model.
    """
    if proof.manifest.parents["model"].sha256 != model.as_parent().sha256:
        raise GateNotPassed(f"{proof.path} proves another model than {model.path}; run jobs/parity.py for it")
    if proof.manifest.metrics["verdict"] != "pass":
        problems = "; ".join(proof.manifest.metrics["problems"])
        raise GateNotPassed(f"{proof.path}: what vLLM serves from {model.path} is not the model that was evaluated: {problems}")


def move_alias(alias: str, run_root: str, model: Artifact, gate: Artifact) -> None:
    """Write an alias and a line of its history; nothing where it already names the model."""
    path, root = alias_path(alias, run_root), Path(run_root).expanduser()
    target = model.as_parent(root)
    if path.exists() and Parent.model_validate_json(path.read_bytes()) == target:
        log.info("%s already names %s", path.stem, target.uri)
        return
    line = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "model": target.model_dump(),
        "gate": gate.as_parent(root).model_dump(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".history.jsonl").open("a") as history:
        history.write(json.dumps(line) + "\n")
        history.flush()
        os.fsync(history.fileno())
    write_atomically(path, target.model_dump_json(indent=2))
    log.info("%s now names %s", path.stem, target.uri)
