"""Artifacts: published once, resumed where they stopped, refused where they are damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from supertiny import artifacts
from supertiny.artifacts import MANIFEST, Artifact
from supertiny.config import StageConfig
from supertiny.errors import CorruptArtifact, InUse, MissingInput

Build = Callable[[Path], Mapping[str, Any]]


class Copy(StageConfig):
    """A stage with one setting."""

    word: str = "hello"
    """What it writes."""


def test_a_published_artifact_opens_with_its_files_metrics_and_settings(tmp_path: Path) -> None:
    made = _make(tmp_path, git_revision="abc")
    opened = artifacts.open_artifact("copy", str(tmp_path), "model")
    assert opened == made
    assert opened.path == tmp_path / "copy"
    assert opened.manifest.files.keys() == {"words.txt", "inner/more.txt"}
    assert opened.manifest.metrics == {"words": 1}
    assert opened.manifest.config == {"name": "copy", "word": "hello", "task": made.manifest.config["task"]}
    assert opened.manifest.git_revision == "abc"


def test_what_ships_with_a_package_goes_by_the_packages_name_wherever_that_lies(tmp_path: Path) -> None:
    uri = "package://supertiny.tasks.assistant/models/base"
    shipped = artifacts.open_artifact(uri, str(tmp_path), "model")
    assert shipped.as_parent(tmp_path).uri == shipped.as_parent().uri == uri
    assert artifacts.open_artifact(shipped.as_parent().uri, "/elsewhere", "model") == shipped


def test_the_same_key_is_not_made_twice_even_elsewhere_or_at_another_revision(tmp_path: Path) -> None:
    first = _make(tmp_path, git_revision="1")
    again = _make(tmp_path, build=_never, git_revision="2")
    assert again == first


def test_another_setting_makes_it_anew_and_moves_the_old_one_aside(tmp_path: Path) -> None:
    _make(tmp_path)
    remade = _make(tmp_path, word="bye")
    assert (remade.path / "words.txt").read_text() == "bye"
    (aside,) = tmp_path.glob(".copy.replaced-*")
    assert (aside / "words.txt").read_text() == "hello"
    assert artifacts.read_manifest(aside).config["word"] == "hello"


def test_an_interrupted_build_finds_its_folder_as_it_left_it(tmp_path: Path) -> None:
    def dies_half_way(folder: Path) -> Mapping[str, Any]:
        (folder / "half").write_text("done")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _make(tmp_path, build=dies_half_way)
    assert not (tmp_path / "copy").exists()

    def goes_on(folder: Path) -> Mapping[str, Any]:
        assert (folder / "half").read_text() == "done"
        return {}

    assert _make(tmp_path, build=goes_on).manifest.files.keys() == {"half"}
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_a_second_process_that_would_make_the_same_artifact_is_refused_and_one_after_the_first_died_is_not(tmp_path: Path) -> None:
    held = """
import sys, time
from supertiny import artifacts
from supertiny.config import StageConfig
def build(folder):
    (folder / "half").write_text("done")
    print("building", flush=True)
    time.sleep(60)
artifacts.make(StageConfig(name="copy", run_root=sys.argv[1]), "model", {}, build)
"""
    first = subprocess.Popen([sys.executable, "-c", held, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stdout.readline() == "building\n"
    config = StageConfig(name="copy", run_root=str(tmp_path))
    with pytest.raises(InUse, match=r"another process is making .*\.copy\..*\.partial; wait for it, or end it first"):
        artifacts.make(config, "model", {}, _never)
    first.kill()
    first.wait()
    assert artifacts.make(config, "model", {}, lambda folder: {}).manifest.files.keys() == {"half"}
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_a_build_that_was_stopped_before_its_folder_was_renamed_is_not_made_again(tmp_path: Path) -> None:
    made = _make(tmp_path)
    made.path.rename(tmp_path / f".copy.{made.manifest.key[:8]}.partial")
    assert _make(tmp_path, build=_never) == made


def test_a_build_with_another_key_starts_in_an_empty_folder(tmp_path: Path) -> None:
    def dies(folder: Path) -> Mapping[str, Any]:
        (folder / "half").write_text("done")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        _make(tmp_path, build=dies)
    assert _make(tmp_path, word="other").manifest.files.keys() == {"words.txt", "inner/more.txt"}


def test_working_files_that_start_with_a_dot_are_not_part_of_an_artifact(tmp_path: Path) -> None:
    def build(folder: Path) -> Mapping[str, Any]:
        (folder / "kept").write_text("1")
        (folder / ".draft").write_text("2")
        (folder / ".work").mkdir()
        (folder / ".work" / "x").write_text("3")
        return {}

    assert _make(tmp_path, build=build).manifest.files.keys() == {"kept"}


def test_a_new_parent_makes_a_new_key_and_a_parent_made_again_alike_does_not(tmp_path: Path) -> None:
    parent = _make(tmp_path / "one", name="parent")
    twin = _make(tmp_path / "two", name="parent")
    other = _make(tmp_path / "three", name="parent", word="other")
    config = Copy(name="child")
    assert artifacts.stage_key(config, "model", {"student": parent}) == artifacts.stage_key(config, "model", {"student": twin})
    assert artifacts.stage_key(config, "model", {"student": parent}) != artifacts.stage_key(config, "model", {"student": other})
    assert artifacts.stage_key(config, "model", {"student": parent}) != artifacts.stage_key(config, "model", {"teacher": parent})
    assert artifacts.stage_key(config, "model", {"student": parent}) != artifacts.stage_key(config, "rollouts", {"student": parent})


def test_a_child_names_its_parent_by_the_hash_of_its_manifest(tmp_path: Path) -> None:
    parent = _make(tmp_path, name="parent")
    child = artifacts.make(Copy(name="child", run_root=str(tmp_path)), "model", {"student": parent}, _writes("x"))
    entry = child.manifest.parents["student"]
    assert entry.uri == "parent"
    assert entry == parent.as_parent(tmp_path)
    (parent.path / MANIFEST).write_text((parent.path / MANIFEST).read_text() + "\n")
    assert entry != parent.as_parent(tmp_path)


def test_a_parent_is_found_again_as_long_as_it_is_the_one_that_it_was(tmp_path: Path) -> None:
    parent = _make(tmp_path, name="parent")
    entry = parent.as_parent(tmp_path)
    assert artifacts.find_parent(entry, str(tmp_path)) == parent.path
    assert artifacts.find_parent(entry, str(tmp_path / "elsewhere")) is None
    _make(tmp_path, name="parent", word="another")
    assert artifacts.find_parent(entry, str(tmp_path)) is None


def test_a_parent_outside_the_run_root_is_named_by_its_path(tmp_path: Path) -> None:
    parent = _make(tmp_path / "elsewhere", name="parent")
    child = artifacts.make(Copy(name="child", run_root=str(tmp_path / "here")), "model", {"student": parent}, _writes("x"))
    assert child.manifest.parents["student"].uri == str(parent.path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_text("hellO"), "contents differ"),
        (lambda path: os.truncate(path, 2), "2 bytes, the manifest says 5"),
        (lambda path: path.unlink(), "named in the manifest but missing"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(_make(tmp_path).path / "words.txt")
    with pytest.raises(CorruptArtifact, match=rf"words\.txt: {message}"):
        artifacts.open_artifact("copy", str(tmp_path), "model")
    with pytest.raises(CorruptArtifact, match=message):
        _make(tmp_path, build=_never)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"kind": "model"}', b"\xff\xfe"])
def test_a_manifest_that_cannot_be_read_is_corrupt_not_absent(tmp_path: Path, content: bytes) -> None:
    (_make(tmp_path).path / MANIFEST).write_bytes(content)
    with pytest.raises(CorruptArtifact, match=r"manifest\.json cannot be read"):
        artifacts.open_artifact("copy", str(tmp_path), "model")


def test_a_folder_without_a_manifest_was_never_finished(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    with pytest.raises(MissingInput, match=r"no manifest\.json, so it was never finished"):
        artifacts.open_artifact("copy", str(tmp_path), "model")


def test_an_artifact_of_another_kind_is_refused(tmp_path: Path) -> None:
    _make(tmp_path)
    with pytest.raises(CorruptArtifact, match="a model artifact where a rollouts is needed"):
        artifacts.open_artifact("copy", str(tmp_path), "rollouts")


def test_a_missing_artifact_says_where_it_was_looked_for_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match=rf"distill: nothing at {tmp_path}/distill; run the stage that makes it"):
        artifacts.open_artifact("distill", str(tmp_path), "model")


@pytest.mark.parametrize("uri", ["s3://bucket/model", "hf://org/model"])
def test_a_scheme_that_is_not_read_is_refused_by_name(tmp_path: Path, uri: str) -> None:
    with pytest.raises(MissingInput, match=f"{uri}: only local paths and package:// are read"):
        artifacts.resolve(uri, str(tmp_path))


@pytest.mark.parametrize("uri", ["package://supertiny.no_such_module/models", "package://supertiny.tasks/no/such/folder"])
def test_a_shipped_model_that_is_not_there_is_missing_input(uri: str) -> None:
    with pytest.raises(MissingInput, match=f"{uri}: "):
        artifacts.resolve(uri, "unused")


def test_names_absolute_paths_and_the_package_resolve(tmp_path: Path) -> None:
    made = _make(tmp_path).path
    assert artifacts.resolve("copy", str(tmp_path)) == made
    assert artifacts.resolve(str(made), "/nowhere") == made
    assert artifacts.resolve("package://supertiny.tasks/base.py", "/nowhere").name == "base.py"


def test_an_alias_leads_to_the_very_artifact_that_was_promoted(tmp_path: Path) -> None:
    promoted = _make(tmp_path)
    _promote("student@production", promoted, tmp_path)
    assert artifacts.read_alias("student@production", str(tmp_path)) == promoted


def test_an_alias_whose_artifact_was_made_anew_is_refused(tmp_path: Path) -> None:
    _promote("student@production", _make(tmp_path), tmp_path)
    _make(tmp_path, word="other")
    with pytest.raises(CorruptArtifact, match="is not the artifact that was promoted; promote it again"):
        artifacts.read_alias("student@production", str(tmp_path))


def test_an_alias_that_nobody_promoted_says_so(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="nothing was promoted under this alias"):
        artifacts.read_alias("student@production", str(tmp_path))


def test_an_alias_file_that_cannot_be_read_is_corrupt(tmp_path: Path) -> None:
    path = artifacts.alias_path("student@production", str(tmp_path))
    path.parent.mkdir()
    path.write_text("{")
    with pytest.raises(CorruptArtifact, match=r"student@production\.json cannot be read"):
        artifacts.read_alias("student@production", str(tmp_path))


def test_a_failed_write_leaves_the_old_text(tmp_path: Path) -> None:
    path = tmp_path / "inner" / "state.json"
    artifacts.write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        artifacts.write_atomically(path, "new \ud800")
    assert path.read_text() == "old"
    artifacts.write_atomically(path, "new")
    assert path.read_text() == "new"
    assert [each.name for each in path.parent.iterdir()] == ["state.json"]


def _make(root: Path, *, name: str = "copy", word: str = "hello", git_revision: str = "unknown", build: Build | None = None) -> Artifact:
    config = Copy(name=name, word=word, run_root=str(root), git_revision=git_revision)
    return artifacts.make(config, "model", {}, build or _writes(word))


def _writes(word: str) -> Build:
    def build(folder: Path) -> Mapping[str, Any]:
        (folder / "words.txt").write_text(word)
        (folder / "inner").mkdir(exist_ok=True)
        (folder / "inner" / "more.txt").write_text(json.dumps([word]))
        return {"words": 1}

    return build


def _never(_: Path) -> Mapping[str, Any]:
    raise AssertionError("it was made again")


def _promote(alias: str, artifact: Artifact, root: Path) -> None:
    artifacts.write_atomically(artifacts.alias_path(alias, str(root)), artifact.as_parent().model_dump_json())
