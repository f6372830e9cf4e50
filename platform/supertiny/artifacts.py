"""Artifacts: published folders whose `manifest.json` is written last, and the stage that makes one only if it must.

run_root/
    distill/                  published: manifest.json names every file with its sha256, the parents and the config
    .distill.3f9a2c01.partial/  being made: the same key resumes in it, another key starts afresh
    .distill.3f9a2c01.lock      held by the process that makes it, for one at a time
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from supertiny.cli import package_version
from supertiny.config import StageConfig
from supertiny.errors import CorruptArtifact, InUse, MissingInput
from supertiny.records import Record

MANIFEST = "manifest.json"
PACKAGE = "package://"
log = logging.getLogger(__name__)


class FileEntry(Record):
    """One file of an artifact."""

    sha256: str
    bytes: int


class Parent(Record):
    """An artifact that another was made from."""

    uri: str
    sha256: str
    """Hash of the parent's manifest."""


class Manifest(Record):
    """Description of an artifact, written after everything it describes."""

    kind: str
    """`model`, `rollouts`, `evaluation`, `gate`, `report`, `parity`, `pareto`, `recovery`."""
    name: str
    key: str
    """Hash of kind, settings and parents: equal keys mean the same work."""
    files: dict[str, FileEntry]
    parents: dict[str, Parent] = Field(default_factory=dict)
    config: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, Any] = Field(default_factory=dict)
    version: str = "source"
    git_revision: str = "unknown"
    created: str = ""
    """When it was published, UTC, ISO 8601."""
    seconds: float = 0.0
    """Time that making it took, in the attempt that finished it."""


@dataclass(frozen=True)
class Artifact:
    """A published folder and its manifest."""

    path: Path
    manifest: Manifest
    package_uri: str | None = None
    """`package://...` where it ships with a package, whose folder is another on every machine."""

    def as_parent(self, root: Path | None = None) -> Parent:
        """How a child refers to this artifact: as what ships with a package, by its name below `root`, which can be moved, else by path."""
        inside = root is not None and self.path.is_relative_to(root)
        path = self.path.relative_to(root) if root and inside else self.path
        return Parent(uri=self.package_uri or str(path), sha256=_sha256(self.path / MANIFEST))


def resolve(uri: str, run_root: str) -> Path:
    """The path of an artifact: a name under `run_root`, an absolute path, or `package://module.path/folder` (shipped).

    Raises:
        MissingInput: the scheme is unknown, or nothing is there.
    """
    if uri.startswith(PACKAGE):
        module, _, folder = uri.removeprefix(PACKAGE).partition("/")
        try:
            path = Path(str(package_files(module).joinpath(folder)))
        except ModuleNotFoundError as error:
            raise MissingInput(f"{uri}: {error}") from None
    elif "://" in uri:
        raise MissingInput(f"{uri}: only local paths and package:// are read; copy the artifact to a path that every node sees")
    else:
        path = Path(run_root).expanduser().absolute() / Path(uri).expanduser()
    if not path.exists():
        raise MissingInput(
            f"{uri}: nothing at {path}; run the stage that makes it, or set another run_root or path "
            "(a hub's name is no path: fetch the model, then take it in with jobs/adopt.py)"
        )
    return path


def find_parent(parent: Parent, run_root: str) -> Path | None:
    """The folder of what an artifact was made from, where it is still there as it was; its files are not checked."""
    try:
        manifest = resolve(parent.uri, run_root) / MANIFEST
    except MissingInput:
        return None
    return manifest.parent if manifest.exists() and _sha256(manifest) == parent.sha256 else None


def open_artifact(uri: str, run_root: str, kind: str) -> Artifact:
    """A published artifact, every file checked against the manifest's sha256.

    Raises:
        MissingInput: nothing is there, or no manifest (it was never finished).
        CorruptArtifact: another kind, an unreadable manifest, or a file missing, cut short or altered.
    """
    path = resolve(uri, run_root)
    artifact = Artifact(path, read_manifest(path), uri if uri.startswith(PACKAGE) else None)
    if artifact.manifest.kind != kind:
        raise CorruptArtifact(f"{path}: a {artifact.manifest.kind} artifact where a {kind} is needed")
    for name, entry in artifact.manifest.files.items():
        check_file(path / name, entry)
    return artifact


def read_manifest(path: Path) -> Manifest:
    """The manifest of a published folder.

    Raises:
        MissingInput: there is none.
        CorruptArtifact: it cannot be parsed.
    """
    try:
        return Manifest.model_validate_json((path / MANIFEST).read_bytes())
    except FileNotFoundError:
        what_to_do = "take a model from elsewhere in with jobs/adopt.py" if (path / "config.json").exists() else "run the stage again"
        raise MissingInput(f"{path}: no {MANIFEST}, so it was never finished; {what_to_do}") from None
    except ValidationError as error:
        raise CorruptArtifact(f"{path / MANIFEST} cannot be read: {error.errors()[0]['msg']}") from None


def make(config: StageConfig, kind: str, parents: Mapping[str, Artifact], build: Callable[[Path], Mapping[str, Any]]) -> Artifact:
    """The stage's artifact: opened where it is already published with the same key, else built and published.

    `build` fills the folder it is given and returns the metrics. An interrupted build with the same key finds its folder as
    it left it, so that it can resume. A published artifact with another key is moved aside, never deleted.

    Raises:
        InUse: another process is making it.
    """
    if made := find_made(config, kind, parents):
        return made
    root = Path(config.run_root).expanduser().absolute()
    final = root / config.name
    key = stage_key(config, kind, parents)
    partial = root / f".{config.name}.{key[:8]}.partial"
    partial.mkdir(parents=True, exist_ok=True)
    with _alone(partial):
        if not (partial / MANIFEST).exists():  # else it was stopped after its last step but the renaming
            _build(config, kind, key, parents, build, partial)
        if final.exists():
            final.rename(root / f".{config.name}.replaced-{time.time_ns()}")
        partial.rename(final)
    manifest = read_manifest(final)
    log.info("%s: published, made in %.1f s, %s", config.name, manifest.seconds, final)
    return Artifact(final, manifest)


def find_made(config: StageConfig, kind: str, parents: Mapping[str, Artifact]) -> Artifact | None:
    """The stage's artifact, where it is already published with the same key; for stages that take long to plan what they build."""
    final = Path(config.run_root).expanduser().absolute() / config.name
    if not (final / MANIFEST).exists() or read_manifest(final).key != stage_key(config, kind, parents):
        return None
    log.info("%s: already made, %s", config.name, final)
    return open_artifact(config.name, config.run_root, kind)


@contextmanager
def _alone(partial: Path) -> Iterator[None]:
    """Nobody else builds there meanwhile; a process that dies lets go of the lock."""
    lock = partial.with_suffix(".lock")
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUse(f"another process is making {partial}; wait for it, or end it first") from None
        except OSError as error:  # a file system without locks
            log.warning("%s cannot be locked (%s): see that no second run of this stage is under way", partial, error.strerror)
        yield
        lock.unlink(missing_ok=True)


def _build(
    config: StageConfig,
    kind: str,
    key: str,
    parents: Mapping[str, Artifact],
    build: Callable[[Path], Mapping[str, Any]],
    folder: Path,
) -> None:
    """Fill the folder, its manifest last."""
    started = time.monotonic()
    metrics = build(folder)
    seconds = time.monotonic() - started
    root = folder.parent
    manifest = Manifest(
        kind=kind,
        name=config.name,
        key=key,
        files=file_entries(folder),
        parents={role: parent.as_parent(root) for role, parent in parents.items()},
        config=config.settings(),
        metrics=dict(metrics),
        version=package_version(),
        git_revision=config.git_revision,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        seconds=round(seconds, 3),
    )
    write_atomically(folder / MANIFEST, manifest.model_dump_json(indent=2))


def stage_key(config: StageConfig, kind: str, parents: Mapping[str, Artifact]) -> str:
    """sha256 (hex) of what decides a stage's result: its kind, settings and parents' contents."""
    made_from = {role: parent.manifest.key for role, parent in sorted(parents.items())}
    text = json.dumps([kind, config.settings(), made_from], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_alias(alias: str, run_root: str) -> Artifact:
    """The artifact that an alias such as `student@production` names, its manifest's hash and files checked.

    Raises:
        MissingInput: nothing was promoted under this alias, or its artifact is gone.
        CorruptArtifact: the alias cannot be read, or its artifact is not the one that was promoted.
    """
    path = alias_path(alias, run_root)
    if not path.exists():
        raise MissingInput(f"{alias}: nothing was promoted under this alias in {run_root}; run jobs/promote.py first")
    try:
        entry = Parent.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise CorruptArtifact(f"{path} cannot be read: {error.errors()[0]['msg']}; promote again") from None
    artifact = open_artifact(entry.uri, run_root, "model")
    if artifact.as_parent().sha256 != entry.sha256:
        raise CorruptArtifact(f"{alias}: {artifact.path} is not the artifact that was promoted; promote it again")
    return artifact


def alias_path(alias: str, run_root: str) -> Path:
    """The file that holds an alias: a `Parent` as JSON."""
    return Path(run_root).expanduser().absolute() / "aliases" / f"{alias}.json"


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    with draft.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def file_entries(folder: Path) -> dict[str, FileEntry]:
    """Hash of every file below a folder; names that start with a dot are working files and do not count."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    names = {str(path.relative_to(folder)): path for path in paths}
    return {
        name: FileEntry(sha256=_sha256(path), bytes=path.stat().st_size)
        for name, path in names.items()
        if name != MANIFEST and not any(part.startswith(".") for part in Path(name).parts)
    }


def check_file(path: Path, entry: FileEntry) -> None:
    """Compare a file with its entry.

    Raises:
        CorruptArtifact: it is missing, cut short or altered.
    """
    if not path.exists():
        raise CorruptArtifact(f"{path}: named in the manifest but missing")
    size = path.stat().st_size
    if size != entry.bytes:
        raise CorruptArtifact(f"{path}: {size} bytes, the manifest says {entry.bytes}; copy or make the artifact again")
    if _sha256(path) != entry.sha256:
        raise CorruptArtifact(f"{path}: contents differ from the manifest's sha256; copy or make the artifact again")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
