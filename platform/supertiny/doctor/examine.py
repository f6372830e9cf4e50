"""Asks every node of the running Ray, and shows what is wrong with it."""

from __future__ import annotations

import logging
import secrets
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.table import Table

from supertiny.doctor.checks import Finding, Seen, check_all
from supertiny.doctor.config import DoctorConfig
from supertiny.doctor.node import look
from supertiny.errors import Unhealthy
from supertiny.jobserver import answers_without_token, is_local, refuse_open

log = logging.getLogger(__name__)


def examine(config: DoctorConfig) -> list[Finding]:
    """All findings, printed as a table.

    Raises:
        Unhealthy: something would fail later; the table says what, and what mends it.
    """
    if not ray.is_initialized():
        ray.init(logging_level=logging.WARNING)
    findings = [*_job_server(), *_nodes(config)]
    Console().print(table(findings))
    faults = [finding for finding in findings if not finding.ok]
    if faults:
        raise Unhealthy(f"{len(faults)} of {len(findings)} checks failed: {', '.join(sorted({fault.check for fault in faults}))}")
    return findings


def table(findings: Sequence[Finding]) -> Table:
    """The findings, those that need mending first."""
    shown = Table("", "check", "found", "mend", title="supertiny doctor")
    for finding in sorted(findings, key=lambda finding: finding.ok):
        shown.add_row("[green]ok" if finding.ok else "[red]FAIL", finding.check, finding.found, finding.mend)
    return shown


def refuse_strangers() -> None:
    """Raise OpenCluster where others reach the job server of the running Ray, and it asks them for no token."""
    if url := _dashboard():
        refuse_open(url)


def _job_server() -> list[Finding]:
    """Whether strangers can send jobs."""
    url = _dashboard()
    if not url:
        return [Finding(check="job server", ok=True, found="none runs")]
    if not answers_without_token(url):
        return [Finding(check="job server", ok=True, found=f"{url} refuses a request without a token")]
    local = is_local(urlsplit(url).hostname or "")
    mend = "" if local else "RAY_AUTH_MODE=token and one RAY_AUTH_TOKEN on every node, or --dashboard-host=127.0.0.1"
    return [
        Finding(check="job server", ok=local, found=f"{url} answers without a token{', to this machine alone' if local else ''}", mend=mend)
    ]


def _dashboard() -> str | None:
    node = ray._private.worker._global_node
    return f"http://{node.webui_url}" if node is not None and node.webui_url else None


def _head() -> dict[str, str]:
    """What every node has to reach: Ray's state, and the dashboard where it listens to more than its own machine."""
    url = urlsplit(_dashboard() or "")
    shown = {"dashboard": url.netloc} if url.hostname and not is_local(url.hostname) else {}
    return {"GCS": ray.get_runtime_context().gcs_address, **shown}


def _nodes(config: DoctorConfig) -> list[Finding]:
    shared = Path(config.run_root).expanduser() / f".doctor-{secrets.token_hex(4)}"
    note = secrets.token_hex(16)
    shared.mkdir(parents=True)
    try:
        (shared / "driver").write_text(note)
        seen, silent = _ask_all(config, shared, note)
        return [*silent, *check_all(seen, config), *_read_back(shared, note, seen)]
    finally:
        shutil.rmtree(shared, ignore_errors=True)


def _ask_all(config: DoctorConfig, shared: Path, note: str) -> tuple[list[Seen], list[Finding]]:
    """The nodes that answered, and a finding for each that did not."""
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    sent, head = time.time(), _head()
    asked = {node["NodeID"]: _look_on(node["NodeID"]).remote(str(shared), note, config.ports, head) for node in alive}
    seen, silent = [], []
    for node in alive:
        try:
            facts = ray.get(asked[node["NodeID"]], timeout=config.node_limit_seconds)
        except (GetTimeoutError, RayError) as error:
            why = f"{node['NodeManagerAddress']}: {type(error).__name__}"
            mend = "look at its raylet.out; a node that cannot start a worker, or import supertiny, is of no use"
            silent.append(Finding(check="answers", ok=False, found=why, mend=mend))
            continue
        early, late = facts.seconds - time.time(), facts.seconds - sent  # the clock was read between the two
        apart = 0.0 if early <= 0 <= late else min(early, late, key=abs)
        seen.append(Seen(facts, node["Resources"], apart))
    return seen, silent


def _look_on(node_id: str) -> Any:
    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(look).options(num_cpus=0, scheduling_strategy=there, max_retries=0)


def _read_back(shared: Path, note: str, seen: Sequence[Seen]) -> list[Finding]:
    """Whether the driver sees what the nodes wrote; network file systems take some seconds to show it."""
    wrote = sum(node.facts.storage is None for node in seen)
    for _ in range(20):
        there = [path for path in shared.iterdir() if path.name != "driver" and path.read_text() == note]
        if len(there) >= wrote:
            break
        time.sleep(0.5)
    mend = "" if len(there) >= wrote else "their folder of that name is not the driver's: mount one file system on all nodes"
    return [Finding(check="shared storage", ok=not mend, found=f"the driver reads what {len(there)} of {wrote} nodes wrote", mend=mend)]
