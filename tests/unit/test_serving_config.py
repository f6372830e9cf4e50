"""The application's arguments: every checked-in YAML is valid, and a wrong value is refused before anything is deployed."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from supertiny.artifacts import Manifest, alias_path, file_entries, open_artifact, write_atomically
from supertiny.config import validate
from supertiny.errors import ConfigError, CorruptArtifact, MissingInput
from supertiny.serving.config import ServeConfig
from supertiny.serving.sources import control_alone_unless_promoted, model_paths

YAMLS = sorted((Path(__file__).resolve().parents[2] / "serve").glob("*.yaml"))


def publish_model(root: Path, name: str) -> Path:
    """A model artifact with one file."""
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    manifest = Manifest(kind="model", name=name, key=name, files=file_entries(folder))
    write_atomically(folder / "manifest.json", manifest.model_dump_json())
    return folder


def promote(root: Path, name: str) -> None:
    """What `jobs/promote.py` writes."""
    parent = open_artifact(name, str(root), "model").as_parent()
    write_atomically(alias_path("student@production", str(root)), parent.model_dump_json())


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.name)
def test_every_yaml_is_a_valid_serve_config_with_valid_arguments(path: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))
    for application in schema.applications:
        assert application.import_path == "serve.app:build"
        validate(ServeConfig, application.args, path.name)


def test_there_is_a_yaml_for_the_split_and_one_for_the_student() -> None:
    assert [path.name for path in YAMLS] == ["ab.yaml", "student.yaml"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"trafic_fraction": 0.1}, "trafic_fraction: no such key; did you mean traffic_fraction?"),
        ({"teacher_arm": {"replicas": 2}}, "teacher_arm.replicas: no such key; did you mean min_replicas?"),
        ({"traffic_fraction": 1.5}, "traffic_fraction: "),
        ({"student": None}, "traffic_fraction 0.5 needs a promoted student"),
        ({"student": "heal"}, "traffic_fraction 0.5 needs a promoted student"),
        ({"student": None, "mode": "cascade", "traffic_fraction": 0}, "needs a promoted student"),
        ({"student": "heal", "mode": "cascade", "traffic_fraction": 0}, "needs a promoted student"),
        ({"student": None, "mode": "shadow", "traffic_fraction": 0}, "mode shadow needs a student"),
        ({"student_arm": {"min_replicas": 0}}, "student_arm.min_replicas: 0"),
        ({"student": "heal", "traffic_fraction": 0, "student_release": "w8a8-1f2e3d4c"}, "student_release: only an alias"),
        ({"api_keys": "st-secret"}, "api_keys: "),
        ({"trace_endpoint": "collector:4317"}, "trace_endpoint: "),
        ({"student_arm": {"min_replicas": 2}}, "max_replicas 1 is under min_replicas 2"),
        ({"student_arm": {"max_ongoing_requests": 4}}, "target_ongoing_requests 16 is over max_ongoing_requests 4"),
    ],
)
def test_a_wrong_argument_is_refused_and_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(ServeConfig, values, "args")
    assert said in str(caught.value)


def test_serving_the_teacher_alone_needs_no_student() -> None:
    config = ServeConfig(student=None, traffic_fraction=0)
    assert config.num_cpus == 1
    assert ServeConfig().num_cpus == 2


def test_before_promotion_the_build_fails_and_says_what_to_run(tmp_path: Path) -> None:
    publish_model(tmp_path, "teacher")
    with pytest.raises(MissingInput, match=r"student@production: nothing was promoted .* run jobs/promote\.py first"):
        model_paths(ServeConfig(run_root=str(tmp_path), teacher="teacher"))


def test_the_alias_names_the_folder_that_is_served(tmp_path: Path) -> None:
    publish_model(tmp_path, "teacher")
    student = publish_model(tmp_path, "w8a8")
    promote(tmp_path, "w8a8")
    paths = model_paths(ServeConfig(run_root=str(tmp_path), teacher="teacher"))
    assert paths == {"teacher": tmp_path / "teacher", "student": student}


def test_the_release_that_the_file_names_is_the_one_that_is_served(tmp_path: Path) -> None:
    publish_model(tmp_path, "teacher")
    publish_model(tmp_path, "w8a8-1")
    new = publish_model(tmp_path, "w8a8-2")
    promote(tmp_path, "w8a8-1")
    config = ServeConfig(run_root=str(tmp_path), teacher="teacher", student_release="w8a8-2")
    with pytest.raises(ConfigError, match="student_release w8a8-2, and student@production names w8a8-1"):
        model_paths(config)
    promote(tmp_path, "w8a8-2")
    assert model_paths(config)["student"] == new
    assert config.control_alone().student_release is None


def test_serve_builds_anew_only_where_an_argument_changed() -> None:
    from ray.serve._private.deploy_utils import get_app_code_version
    from ray.serve.schema import ServeApplicationSchema

    def version(**args: Any) -> str:
        return str(get_app_code_version(ServeApplicationSchema(import_path="serve.app:build", args=args)))

    assert version(student="student@production") == version(student="student@production")  # whatever the alias names by now
    assert version(student_release="w8a8-1") != version(student_release="w8a8-2")


def test_a_student_that_changed_after_its_promotion_is_not_served(tmp_path: Path) -> None:
    publish_model(tmp_path, "teacher")
    student = publish_model(tmp_path, "w8a8")
    promote(tmp_path, "w8a8")
    (student / "config.json").write_text("[]")
    with pytest.raises(CorruptArtifact):
        model_paths(ServeConfig(run_root=str(tmp_path), teacher="teacher"))


def test_a_teacher_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="nowhere: nothing at"):
        model_paths(ServeConfig(run_root=str(tmp_path), teacher="nowhere", student=None, traffic_fraction=0))


def test_without_a_promotion_the_control_has_all_of_the_traffic(tmp_path: Path) -> None:
    config = ServeConfig(run_root=str(tmp_path), teacher="teacher", traffic_fraction=0.5)
    alone = control_alone_unless_promoted(config)
    assert (alone.student, alone.traffic_fraction, alone.teacher) == (None, 0.0, "teacher")
    write_atomically(alias_path("student@production", str(tmp_path)), "{}")
    assert control_alone_unless_promoted(config) == config


def test_a_student_that_was_not_promoted_may_be_a_shadow() -> None:
    assert not ServeConfig(student="heal", mode="shadow", traffic_fraction=0).student_answers


def test_scripted_engines_and_an_endpoint_need_no_model(tmp_path: Path) -> None:
    scripted = {"scripted": {"answer": "done"}}
    config = validate(ServeConfig, {"run_root": str(tmp_path), "student_arm": scripted, "teacher_arm": scripted}, "args")
    assert model_paths(config) == {}
    endpoint = {"base_url": "http://teacher/v1", "model": "large"}
    remote = validate(ServeConfig, {"run_root": str(tmp_path), "student_arm": scripted, "teacher_endpoint": endpoint}, "args")
    assert model_paths(remote) == {}
    assert remote.num_cpus == 1


def test_the_routing_is_the_part_that_may_change_without_a_restart() -> None:
    config = ServeConfig(mode="cascade", salt="x")
    assert config.routing.model_dump() == {
        **{"mode": "cascade", "traffic_fraction": 0.5, "salt": "x"},
        "shadow": config.shadow.model_dump(),
        "cascade": {"threshold": 0.0},
        "log_prompts": False,
    }
