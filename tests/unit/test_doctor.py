"""What the doctor makes of what nodes say: each fault is found, named with its node, and comes with its mend."""

from __future__ import annotations

import io
import os
import re
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from supertiny.doctor.checks import Finding, Seen, check_all
from supertiny.doctor.config import DoctorConfig
from supertiny.doctor.node import PACKAGES, Gpu, NodeFacts, parse_gpus, refusal

GIB = 2**30
ROOT = Path(__file__).resolve().parents[2]
LOCKS = [ROOT / "requirements" / f"{image}.lock" for image in ("cpu", "gpu", "gpu-compress")]
H100 = Gpu(name="NVIDIA H100 80GB HBM3", driver="580.82.07", memory_gib=79.6)
L4 = Gpu(name="NVIDIA L4", driver="535.230.02", memory_gib=22.5)
WELL = {
    "python": "3.11.9",
    "packages": {"ray": "2.60.0", "torch": "2.13.0"},
    "code": "0123456789ab",
    "revision": "f00",
    "gpus": [],
    "seconds": 0.0,
    "shm_gib": 8.0,
    "disk_gib": 100.0,
    "open_files": 65536,
    "head": {"GCS 10.0.0.1:6379": "", "dashboard 10.0.0.1:8265": ""},
    "auth_mode": "token",
}


def node(name: str, *, clock: float = 0.0, resources: dict[str, float] | None = None, **facts: Any) -> Seen:
    there = {"CPU": 4.0, "object_store_memory": 4.0 * GIB, **(resources or {})}
    return Seen(NodeFacts(name=name, **{**WELL, **facts}), there, clock)


def faults(*nodes: Seen) -> list[Finding]:
    return [finding for finding in check_all(nodes, DoctorConfig()) if not finding.ok]


def test_nodes_that_are_alike_and_well_have_no_fault() -> None:
    assert faults(node("a"), node("b")) == []


@pytest.mark.parametrize(
    ("check", "fault", "says"),
    [
        ("versions", {"packages": {"ray": "2.59.0", "torch": "2.13.0"}}, "ray: 2.60.0 on a, c; 2.59.0 on b"),
        ("versions", {"python": "3.12.1"}, "python: 3.11 on a, c; 3.12 on b"),
        ("code", {"code": "ffffffffffff"}, "0123456789ab on a, c; ffffffffffff on b"),
        ("shared storage", {"storage": "FileNotFoundError: No such file or directory (/shared)"}, "b: FileNotFoundError"),
        ("clock", {"clock": -7.5}, "b: -7.50 s"),
        ("/dev/shm", {"shm_gib": 0.06}, "b: 0.1 GiB for an object store of 4.0"),
        ("disk", {"disk_gib": 3.0}, "b: 3 GiB free, 20 wanted"),
        ("open files", {"open_files": 1024}, "b: 1024, 4096 wanted"),
        ("ports", {"taken_ports": [8000]}, "b: 8000 taken"),
        (
            "head",
            {"head": {"GCS 10.0.0.1:6379": "", "dashboard 10.0.0.1:8265": "timed out"}},
            "b: no connection to dashboard 10.0.0.1:8265 (timed out)",
        ),
        ("token", {"auth_mode": None}, "b: RAY_AUTH_MODE is not set"),
        ("GPU", {"gpu_trouble": "Unable to determine the device handle for GPU0"}, "b: nvidia-smi: Unable to determine"),
        ("GPU", {"gpus": [H100, H100]}, "b: 2 x NVIDIA H100 80GB HBM3; Ray counts 0"),
        ("GPU", {"resources": {"GPU": 1.0}}, "b: none; Ray counts 1"),
        ("driver", {"gpus": [L4, H100], "resources": {"GPU": 2.0}}, "b: 535.230.02, 580.82.07, 580 or newer wanted"),
    ],
)
def test_a_fault_of_one_node_is_found_with_its_mend(check: str, fault: dict[str, Any], says: str) -> None:
    (found,) = faults(node("a"), node("b", **fault), node("c"))
    assert found.check == check
    assert says in found.found
    assert found.mend


def test_a_node_without_a_package_is_no_fault() -> None:
    """The image for quantizing has no vLLM."""
    assert faults(node("a", packages={"ray": "2.60.0", "vllm": "0.29.0"}), node("b", packages={"ray": "2.60.0"})) == []


def test_nodes_of_the_project_s_own_images_are_alike() -> None:
    """The cluster that cluster/ describes: a head from the CPU lock, workers from the others."""
    images = {path.stem: re.findall(r"^([\w-]+)==(\S+)", path.read_text(), re.MULTILINE) for path in LOCKS}
    nodes = [node(name, packages={package: pin for package, pin in pins if package in PACKAGES}) for name, pins in images.items()]
    assert {each.facts.packages["torch"] for each in nodes} == {"2.13.0", "2.13.0+cpu"}
    assert faults(*nodes) == []


def test_another_patch_of_python_is_no_fault() -> None:
    assert faults(node("a"), node("b", python="3.11.2")) == []


def test_gpus_are_read_as_nvidia_smi_prints_them() -> None:
    printed = "NVIDIA H100 80GB HBM3, 580.82.07, 81559\nNVIDIA L4, 580.82.07, 23034\n"
    assert parse_gpus(printed) == [H100, Gpu(name="NVIDIA L4", driver="580.82.07", memory_gib=22.5)]


@pytest.mark.parametrize(("family", "host", "written"), [(socket.AF_INET, "127.0.0.1", "127.0.0.1"), (socket.AF_INET6, "::1", "[::1]")])
def test_a_node_gets_through_to_a_port_only_while_somebody_listens(family: socket.AddressFamily, host: str, written: str) -> None:
    with socket.socket(family) as head:
        head.bind((host, 0))
        address = f"{written}:{head.getsockname()[1]}"
        assert refusal(address) == "Connection refused"
        head.listen()
        assert refusal(address) == ""
    assert refusal(address) == "Connection refused"


def test_a_head_whose_name_nobody_knows_is_not_reached() -> None:
    assert refusal("head.invalid:6379")


def test_what_fails_stands_first_in_the_table() -> None:
    pytest.importorskip("ray")
    from supertiny.doctor.examine import table

    findings = [Finding(check="clock", ok=True, found="a: +0.00 s"), Finding(check="disk", ok=False, found="a: 3 GiB", mend="free some")]
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(table(findings))
    lines = console.export_text().splitlines()
    (bad,) = [at for at, line in enumerate(lines) if "FAIL" in line]
    (good,) = [at for at, line in enumerate(lines) if " ok " in line]
    assert bad < good
    assert "free some" in lines[bad]


@pytest.mark.parametrize(
    ("target", "given", "token"), [("doctor", "", ""), ("doctor", "f00", "f00"), ("demo", "f00", "f00"), ("demo", "", "[0-9a-f]{64}")]
)
def test_make_doctor_invents_no_token(target: str, given: str, token: str, tmp_path: Path) -> None:
    """The cluster that it asks has one, perhaps in ~/.ray/auth_token, and Ray takes the variable first."""
    (tmp_path / "python").write_text('#!/bin/sh\necho "token=$RAY_AUTH_TOKEN mode=$RAY_AUTH_MODE"\n')
    (tmp_path / "python").chmod(0o755)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_AUTH", "MAKE"))}
    command = ["make", "--silent", "--directory", str(ROOT), "--old-file=setup", f"BIN={tmp_path}", target]
    printed = subprocess.run(
        command, env={**clean, **({"RAY_AUTH_TOKEN": given} if given else {})}, capture_output=True, text=True, check=True
    ).stdout
    assert re.fullmatch(f"token={token} mode=token\n", printed)
