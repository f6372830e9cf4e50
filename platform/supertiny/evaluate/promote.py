"""Promotion: point an alias at a release of the model whose gate passed, and at no other.

A release is a copy of the model's folder, by hard links where the file system has them, that no later run touches.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from pathlib import Path

from supertiny.artifacts import Artifact, Parent, alias_path, open_artifact, write_atomically
from supertiny.errors import GateNotPassed
from supertiny.evaluate.config import PromoteConfig
from supertiny.evaluate.phrases import not_compared
from supertiny.evaluate.schema import GateMetrics
from supertiny.records import Parity, Record

RELEASES = "releases"
"""Folder of the run that holds the releases."""
log = logging.getLogger(__name__)


class Move(Record):
    """A line of an alias's history."""

    time: str
    """UTC, ISO 8601."""
    model: Parent
    """The release that the alias names from then on."""
    gate: Parent
    """The gate that had passed."""


def promote(config: PromoteConfig) -> Artifact:
    """The release that the alias names from now on: of the gate's candidate, or the earlier one that `config.release` asks for.

    Every move is kept in `aliases/<alias>.history.jsonl`, the newest last.

    Raises:
        GateNotPassed: the verdict is not `pass`, the model is not the one that was evaluated, the proof that `parity` names failed or is of
            another model, or the alias never named such a release; it stays where it is.
    """
    if config.release is not None:
        earlier = _earlier_move(config)
        release = open_artifact(earlier.model.uri, config.run_root, "model")
        move_alias(config.alias, config.run_root, earlier.model, earlier.gate)
        return release
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
    check_parity(open_artifact(config.parity, config.run_root, "parity"), model)
    root = Path(config.run_root).expanduser().absolute()
    release = make_release(model, root)
    move_alias(config.alias, config.run_root, release.as_parent(root), gate.as_parent(root))
    return release


def check_parity(proof: Artifact, model: Artifact) -> None:
    """Check that a proof passed and is this model's. That tokenizer and template were compared with no other model's is said, not refused.

    Raises:
        GateNotPassed: it failed, or is of another model.
    """
    if proof.manifest.parents["model"].sha256 != model.as_parent().sha256:
        raise GateNotPassed(f"{proof.path} proves another model than {model.path}; run jobs/parity.py for it")
    found = Parity.model_validate(proof.manifest.metrics)
    if found.verdict != "pass":
        problems = "; ".join(found.problems)
        raise GateNotPassed(f"{proof.path}: what vLLM serves from {model.path} is not the model that was evaluated: {problems}")
    if found.not_compared:
        log.warning("%s: %s", model.path, not_compared(found))


def make_release(model: Artifact, root: Path) -> Artifact:
    """The model as `releases/<name>-<hash>`, made where it is not there yet; its key would not tell weights of the same settings apart."""
    uri = f"{RELEASES}/{model.manifest.name}-{model.as_parent().sha256[:8]}"
    folder = root / uri
    if not folder.exists():
        draft = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(model.path, draft, copy_function=_link_or_copy)
        draft.rename(folder)
    return open_artifact(uri, str(root), "model")


def move_alias(alias: str, run_root: str, release: Parent, gate: Parent) -> None:
    """Write an alias and a line of its history; nothing where it already names the release."""
    path = alias_path(alias, run_root)
    if path.exists() and Parent.model_validate_json(path.read_bytes()) == release:
        log.info("%s already names %s", path.stem, release.uri)
        return
    move = Move(time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), model=release, gate=gate)
    path.parent.mkdir(parents=True, exist_ok=True)
    with history_path(path).open("a") as history:
        history.write(json.dumps(move.model_dump()) + "\n")
        history.flush()
        os.fsync(history.fileno())
    write_atomically(path, release.model_dump_json(indent=2))
    log.info("%s now names %s", path.stem, release.uri)


def history_path(alias: Path) -> Path:
    """The file of an alias's moves, beside it."""
    return alias.with_suffix(".history.jsonl")


def _earlier_move(config: PromoteConfig) -> Move:
    path = history_path(alias_path(config.alias, config.run_root))
    moves = [Move.model_validate_json(line) for line in path.read_text().splitlines()] if path.exists() else []
    named = [move for move in moves if config.release in (move.model.uri, Path(move.model.uri).name)]
    if not named:
        there = ", ".join(sorted({move.model.uri for move in moves})) or "none"
        raise GateNotPassed(f"{config.release}: {config.alias} never named such a release; those that it did: {there}")
    return named[-1]


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
