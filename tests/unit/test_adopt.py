"""Models from elsewhere become artifacts: linked, hashed, and refused where they cannot serve."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from supertiny.artifacts import open_artifact, resolve
from supertiny.errors import CorruptArtifact, MissingInput
from supertiny.train.adopt import adopt
from supertiny.train.adopt_config import AdoptConfig

SHIPPED = "package://supertiny.tasks.assistant/models/base"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model folder as `hf download` leaves it."""
    folder = tmp_path / "downloaded"
    shutil.copytree(resolve(SHIPPED, "/"), folder)
    (folder / "manifest.json").unlink()
    (folder / "metrics.jsonl").unlink()
    return folder


def config(tmp_path: Path, source: Path, **settings: str) -> AdoptConfig:
    return AdoptConfig(run_root=str(tmp_path / "run"), name="teacher", source=str(source), **settings)


def test_an_adopted_model_opens_as_any_other_and_loads(tmp_path: Path, source: Path) -> None:
    made = adopt(config(tmp_path, source))
    opened = open_artifact("teacher", str(tmp_path / "run"), "model")
    shipped = open_artifact(SHIPPED, "/", "model").manifest
    assert opened.manifest.files == {name: entry for name, entry in shipped.files.items() if name != "metrics.jsonl"}
    assert opened.manifest.metrics == {name: shipped.metrics[name] for name in ("parameters", "bytes")}
    assert AutoModelForCausalLM.from_pretrained(opened.path).num_parameters() == made.manifest.metrics["parameters"]


def test_a_file_that_changes_afterwards_is_noticed_and_the_changed_model_is_another(tmp_path: Path, source: Path) -> None:
    first = adopt(config(tmp_path, source))
    (source / "generation_config.json").write_text("{}")
    with pytest.raises(CorruptArtifact, match=r"generation_config\.json"):
        open_artifact("teacher", str(tmp_path / "run"), "model")
    assert adopt(config(tmp_path, source)).manifest.key != first.manifest.key


def test_the_model_that_is_asked_for_is_the_one_that_is_taken(tmp_path: Path, source: Path) -> None:
    sha256 = adopt(config(tmp_path, source)).manifest.config["sha256"]
    assert adopt(config(tmp_path, source, sha256=sha256)).manifest.config["sha256"] == sha256
    with pytest.raises(CorruptArtifact, match=f"have sha256 {sha256}, the config asks for 0000"):
        adopt(config(tmp_path, source, sha256="0" * 64))


@pytest.mark.parametrize("lacks", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_that_is_no_model_is_refused(lacks: str, tmp_path: Path, source: Path) -> None:
    (source / lacks).unlink()
    with pytest.raises(MissingInput, match=lacks.removeprefix("model")):
        adopt(config(tmp_path, source))
    assert not (tmp_path / "run").exists()


def test_a_hubs_name_and_an_unadopted_folder_say_what_to_do(tmp_path: Path, source: Path) -> None:
    with pytest.raises(MissingInput, match="nothing is downloaded here, so fetch the model first"):
        adopt(config(tmp_path, Path("Qwen/Qwen2.5-0.5B-Instruct")))
    with pytest.raises(MissingInput, match=r"a hub's name is no path: fetch the model, then take it in with jobs/adopt\.py"):
        open_artifact("Qwen/Qwen2.5-0.5B-Instruct", str(tmp_path), "model")
    with pytest.raises(MissingInput, match=r"take a model from elsewhere in with jobs/adopt\.py"):
        open_artifact(str(source), str(tmp_path), "model")
