import json
import shutil
from pathlib import Path

import pytest
from evaluation_artifacts import make_again, publish_gate, publish_model, publish_proof

from supertiny.artifacts import Artifact, alias_path, read_alias
from supertiny.config import validate
from supertiny.errors import ConfigError, CorruptArtifact, GateNotPassed, MissingInput
from supertiny.evaluate.config import PromoteConfig
from supertiny.evaluate.promote import promote

ALIAS = "student@production"


def publish_candidate(run_root: Path, name: str, num_right: int, gate: str = "gate") -> Artifact:
    """A model with its gate, which passes where enough is right, and a proof that passed."""
    model = publish_gate(run_root, name, num_right, name=gate)
    publish_proof(run_root, model, [])
    return model


def history(run_root: Path) -> list[str]:
    path = alias_path(ALIAS, str(run_root)).with_suffix(".history.jsonl")
    return [Path(json.loads(line)["model"]["uri"]).name for line in path.read_text().splitlines()]


def test_a_passed_gate_moves_the_alias(tmp_path: Path) -> None:
    model = publish_candidate(tmp_path, "awq", 965)
    release = promote(PromoteConfig(run_root=str(tmp_path)))
    assert release == read_alias(ALIAS, str(tmp_path))
    assert release.manifest == model.manifest


@pytest.mark.parametrize("num_right", [925, 880])
def test_an_inconclusive_or_failed_gate_moves_nothing(tmp_path: Path, num_right: int) -> None:
    publish_candidate(tmp_path, "awq", 965)
    first = promote(PromoteConfig(run_root=str(tmp_path)))
    publish_candidate(tmp_path, "w8a8", num_right, gate="gate-2")
    with pytest.raises(GateNotPassed, match="stays where it is"):
        promote(PromoteConfig(run_root=str(tmp_path), gate="gate-2"))
    assert read_alias(ALIAS, str(tmp_path)) == first


def test_what_was_promoted_stays_whole_when_a_later_run_makes_the_model_anew(tmp_path: Path) -> None:
    publish_candidate(tmp_path, "awq", 965)
    first = promote(PromoteConfig(run_root=str(tmp_path)))
    remade = publish_model(tmp_path, "awq", contents="other weights")
    assert read_alias(ALIAS, str(tmp_path)) == first
    assert first.manifest.key != remade.manifest.key


def test_a_model_made_again_with_the_same_settings_has_a_release_of_its_own(tmp_path: Path) -> None:
    model = publish_candidate(tmp_path, "awq", 965)
    first = promote(PromoteConfig(run_root=str(tmp_path)))
    again = make_again(model, "other weights")
    publish_candidate(tmp_path, "awq", 966)
    second = promote(PromoteConfig(run_root=str(tmp_path)))
    assert (second.manifest, again.manifest.key) == (again.manifest, model.manifest.key)
    assert (read_alias(ALIAS, str(tmp_path)).path / "model.safetensors").read_text() == "other weights"
    assert promote(PromoteConfig(run_root=str(tmp_path), release=first.path.name)).manifest == model.manifest
    assert history(tmp_path) == [first.path.name, second.path.name, first.path.name]


def test_a_model_made_again_since_its_gate_is_refused(tmp_path: Path) -> None:
    publish_candidate(tmp_path, "awq", 965)
    publish_model(tmp_path, "awq", contents="other weights")
    with pytest.raises(GateNotPassed, match="made again since"):
        promote(PromoteConfig(run_root=str(tmp_path)))
    assert not alias_path(ALIAS, str(tmp_path)).exists()


def test_an_altered_model_is_refused(tmp_path: Path) -> None:
    model = publish_candidate(tmp_path, "awq", 965)
    (model.path / "model.safetensors").write_text("awp")
    with pytest.raises(CorruptArtifact, match=r"model\.safetensors"):
        promote(PromoteConfig(run_root=str(tmp_path)))


def test_a_passed_proof_of_the_same_model_lets_it_through(tmp_path: Path) -> None:
    model = publish_gate(tmp_path, "awq", 965)
    publish_proof(tmp_path, model, [])
    assert promote(PromoteConfig(run_root=str(tmp_path))).manifest == model.manifest


def test_a_failed_proof_blocks_the_promotion_and_says_why(tmp_path: Path) -> None:
    publish_proof(tmp_path, publish_gate(tmp_path, "awq", 965), ["KL 3 nats a token is over max_kl_nats 0.02"])
    with pytest.raises(GateNotPassed, match="is not the model that was evaluated: KL 3 nats a token"):
        promote(PromoteConfig(run_root=str(tmp_path)))
    assert not alias_path(ALIAS, str(tmp_path)).exists()


def test_a_proof_of_another_model_blocks_the_promotion(tmp_path: Path) -> None:
    publish_gate(tmp_path, "awq", 965)
    publish_proof(tmp_path, publish_model(tmp_path, "w8a8", contents="w8a8"), [])
    with pytest.raises(GateNotPassed, match="proves another model"):
        promote(PromoteConfig(run_root=str(tmp_path)))


def test_a_proof_that_compared_no_tokenizer_lets_it_through_and_the_log_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    publish_proof(tmp_path, publish_gate(tmp_path, "awq", 965), [], not_compared="its vocabulary was cut")
    promote(PromoteConfig(run_root=str(tmp_path)))
    assert "tokenizer and template were not compared with those of a model before it: its vocabulary was cut" in caplog.text


def test_a_missing_proof_blocks_the_promotion(tmp_path: Path) -> None:
    publish_gate(tmp_path, "awq", 965)
    with pytest.raises(MissingInput):
        promote(PromoteConfig(run_root=str(tmp_path)))


def test_the_history_keeps_every_move_and_its_releases_roll_back_whatever_was_made_since(tmp_path: Path) -> None:
    publish_candidate(tmp_path, "awq", 965)
    first = promote(PromoteConfig(run_root=str(tmp_path)))
    promote(PromoteConfig(run_root=str(tmp_path)))  # the same again is no move
    publish_model(tmp_path, "awq", contents="other weights")
    publish_candidate(tmp_path, "w8a8", 966)
    second = promote(PromoteConfig(run_root=str(tmp_path)))
    assert promote(PromoteConfig(run_root=str(tmp_path), release=first.path.name)) == first == read_alias(ALIAS, str(tmp_path))
    assert history(tmp_path) == [first.path.name, second.path.name, first.path.name]


def test_a_release_that_was_never_promoted_is_no_way_around_the_gate(tmp_path: Path) -> None:
    publish_candidate(tmp_path, "awq", 965)
    release = promote(PromoteConfig(run_root=str(tmp_path)))
    publish_model(tmp_path, "w8a8")
    with pytest.raises(
        GateNotPassed, match=rf"w8a8: student@production never named such a release; those that it did: .*{release.path.name}"
    ):
        promote(PromoteConfig(run_root=str(tmp_path), release="w8a8"))


def test_the_alias_stays_where_it_is_when_the_earlier_release_is_gone(tmp_path: Path) -> None:
    publish_candidate(tmp_path, "awq", 965)
    first = promote(PromoteConfig(run_root=str(tmp_path)))
    publish_candidate(tmp_path, "w8a8", 966)
    second = promote(PromoteConfig(run_root=str(tmp_path)))
    shutil.rmtree(first.path)
    with pytest.raises(MissingInput, match=first.path.name):
        promote(PromoteConfig(run_root=str(tmp_path), release=first.path.name))
    assert read_alias(ALIAS, str(tmp_path)) == second


def test_without_a_gate_there_is_no_promotion(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="gate"):
        promote(PromoteConfig(run_root=str(tmp_path)))


@pytest.mark.parametrize("alias", ["student", "../student@production", "student@Production", "a@b@c"])
def test_an_alias_is_a_name_and_a_stage(alias: str) -> None:
    with pytest.raises(ConfigError, match="alias"):
        validate(PromoteConfig, {"alias": alias}, "test")
