"""From what the nodes say of themselves to what is wrong, and what mends it. Knows no Ray, so that every fault can be tried."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from supertiny.doctor.config import DoctorConfig
from supertiny.doctor.node import NodeFacts
from supertiny.records import Record

_GIB = 2**30


class Finding(Record):
    """One thing that was looked at."""

    check: str
    ok: bool
    found: str
    """What there is, with the node where it is one's alone."""
    mend: str = ""
    """What to do, where it is not well."""


@dataclass(frozen=True)
class Seen:
    """One node from both sides."""

    facts: NodeFacts
    resources: Mapping[str, float]
    """What Ray counts there: CPU, GPU, object_store_memory in bytes."""
    clock_seconds: float
    """Its clock minus the driver's, the message's way taken off."""


def check_all(nodes: Sequence[Seen], config: DoctorConfig) -> list[Finding]:
    """Every check of every node: the same for all nodes first, then by node."""
    return [
        *_one_version(nodes),
        _one_code(nodes),
        *(finding for node in nodes for finding in _node(node, config)),
    ]


def _one_version(nodes: Sequence[Seen]) -> Iterator[Finding]:
    """Nodes of one cluster may lack a package (an image for quantizing has no vLLM) or have another build of it, but no other version."""
    names = sorted({name for node in nodes for name in node.facts.packages})
    versions = {"python": {node.facts.name: node.facts.python.rpartition(".")[0] for node in nodes}}
    for name in names:
        versions[name] = {node.facts.name: _release(node.facts.packages[name]) for node in nodes if name in node.facts.packages}
    different = {name: seen for name, seen in versions.items() if len(set(seen.values())) > 1}
    for name, seen in different.items():
        mend = f"give all nodes images of one revision; they have to agree on {name}"
        yield Finding(check="versions", ok=False, found=f"{name}: {_apart(seen)}", mend=mend)
    if not different:
        ray = next(iter(versions.get("ray", {"": "none"}).values()))
        yield Finding(check="versions", ok=True, found=f"{len(nodes)} nodes alike, Ray {ray}, {len(names)} packages looked at")


def _release(version: str) -> str:
    """A version without the build that it is: 2.13.0 for 2.13.0+cpu."""
    return version.partition("+")[0]


def _one_code(nodes: Sequence[Seen]) -> Finding:
    seen = {node.facts.name: node.facts.code for node in nodes}
    if len(set(seen.values())) == 1:
        revisions = {node.facts.revision for node in nodes if node.facts.revision}
        return Finding(
            check="code", ok=True, found=f"{next(iter(seen.values()))}, images of {', '.join(sorted(revisions)) or 'no revision'}"
        )
    mend = "submit with --runtime-env cluster/runtime_env.yaml, or give all nodes images of one revision"
    return Finding(check="code", ok=False, found=_apart(seen), mend=mend)


def _node(node: Seen, config: DoctorConfig) -> Iterator[Finding]:
    facts = node.facts
    yield _gpu(node)
    if facts.gpus:
        yield _driver(facts, config.min_driver)
    yield _judge(
        "shared storage",
        facts.storage is None,
        f"{facts.name}: {facts.storage or f'read and written, {facts.storage_gib:.0f} GiB free'}",
        "mount the same file system there, writable for the user that Ray runs as, or set run_root to a folder that all nodes see",
    )
    yield _judge(
        "clock",
        abs(node.clock_seconds) <= config.max_clock_seconds,
        f"{facts.name}: {node.clock_seconds:+.2f} s",
        "let chrony or systemd-timesyncd run there",
    )
    yield _shm(node, config)
    yield _judge(
        "disk",
        facts.disk_gib >= config.min_disk_gib,
        f"{facts.name}: {facts.disk_gib:.0f} GiB free, {config.min_disk_gib:g} wanted",
        "free some, or start Ray with --temp-dir on a larger disk: what does not fit into memory is spilled there",
    )
    yield _judge(
        "open files",
        facts.open_files >= config.min_open_files,
        f"{facts.name}: {facts.open_files}, {config.min_open_files} wanted",
        "ulimit -n 65536 before `ray start`, or docker's --ulimit nofile=65536:65536",
    )
    yield _judge(
        "ports",
        not facts.taken_ports,
        f"{facts.name}: {', '.join(map(str, facts.taken_ports)) + ' taken' if facts.taken_ports else 'free'}",
        "end what listens there, or serve on another port (well if it is this application that already serves)",
    )
    yield _head(facts)
    yield _judge(
        "token",
        facts.auth_mode == "token",
        f"{facts.name}: RAY_AUTH_MODE {facts.auth_mode or 'is not set'}",
        "set RAY_AUTH_MODE=token on every node before Ray starts; docs/operations.md, Tokens",
    )


def _head(facts: NodeFacts) -> Finding:
    lost = ", ".join(f"{where} ({why})" for where, why in facts.head.items() if why)
    found = f"no connection to {lost}" if lost else f"reaches {', '.join(facts.head)}"
    mend = "let that node through to these ports of the head (firewall, security group, NetworkPolicy; docs/operations.md, Ports)"
    return _judge("head", not lost, f"{facts.name}: {found}", mend)


def _gpu(node: Seen) -> Finding:
    facts, counted = node.facts, int(node.resources.get("GPU", 0))
    if facts.gpu_trouble:
        mend = "the driver does not answer: drain the node and replace it, or reset its GPU"
        return Finding(check="GPU", ok=False, found=f"{facts.name}: nvidia-smi: {facts.gpu_trouble}", mend=mend)
    names = ", ".join(f"{count} x {name}" for name, count in Counter(gpu.name for gpu in facts.gpus).items()) or "none"
    found = f"{facts.name}: {names}; Ray counts {counted}"
    mend = "start the container with all GPUs (--gpus all, nvidia.com/gpu), and Ray without --num-gpus, so that it counts them itself"
    return _judge("GPU", counted == len(facts.gpus), found, mend)


def _driver(facts: NodeFacts, least: int) -> Finding:
    drivers = sorted({gpu.driver for gpu in facts.gpus})
    mend = "a machine image, or GKE node pool (gpu-driver-version=latest), with a newer one; or set min_driver where nothing needs CUDA 13"
    old = any(not (major := driver.partition(".")[0]).isdigit() or int(major) < least for driver in drivers)
    return _judge("driver", not old, f"{facts.name}: {', '.join(drivers)}, {least} or newer wanted", mend)


def _shm(node: Seen, config: DoctorConfig) -> Finding:
    store = node.resources.get("object_store_memory", 0) / _GIB
    enough = node.facts.shm_gib >= config.min_shm_fraction * store
    found = f"{node.facts.name}: {node.facts.shm_gib:.1f} GiB for an object store of {store:.1f}"
    return _judge("/dev/shm", enough, found, "docker's --shm-size, or a memory-backed emptyDir at /dev/shm, as large as the object store")


def _judge(check: str, ok: bool, found: str, mend: str) -> Finding:
    return Finding(check=check, ok=ok, found=found, mend="" if ok else mend)


def _apart(seen: Mapping[str, str]) -> str:
    """Which nodes have which value, the commonest first."""
    by_value: dict[str, list[str]] = {}
    for node, value in seen.items():
        by_value.setdefault(value, []).append(node)
    ordered = sorted(by_value.items(), key=lambda item: -len(item[1]))
    return "; ".join(
        f"{value} on {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}" for value, names in ordered
    )
