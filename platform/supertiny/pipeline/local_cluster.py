"""A Ray cluster of one node on this machine, started for one purpose and ended by its process id."""

from __future__ import annotations

import ctypes
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from supertiny.errors import NoProgress
from supertiny.jobserver import refuse_open

QUIET_AND_OFFLINE = {
    "HF_HUB_OFFLINE": "1",  # models are paths; a wrong one must not be looked for on a hub
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's coming default; without it every actor warns
    "LLM_COMPRESSOR_LOG_LEVEL": "ERROR",  # it warns that there is no accelerator
    "RAYLLM_ENABLE_REQUEST_PROMPT_LOGS": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # vLLM tells of every engine where its memory lies
    "TQDM_DISABLE": "1",  # bars of many processes in one log
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
"""What every process of the cluster inherits, where the environment does not say otherwise."""
PR_SET_PDEATHSIG = 1
"""Of Linux's prctl(2)."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LocalCluster:
    """Where a running cluster listens."""

    address: str
    """For `ray.init` and RAY_ADDRESS."""
    dashboard_url: str
    """For `ray job submit --address`."""


def take_sigterm_for_ctrl_c() -> None:
    """End this process in order when it is told to, as by Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@contextmanager
def local_cluster(num_cpus: int, *, start_limit_seconds: float = 120.0) -> Iterator[LocalCluster]:
    """A head node on free ports with its own temporary folder; every process of it is gone afterwards, by Ctrl-C and SIGTERM too.

    Args:
        num_cpus: logical CPUs, which may be more than the machine's cores: many of our actors only wait.

    Raises:
        NoProgress: the dashboard did not answer in time; the message names the log.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # unset, `ray start` may want a token that `ray job submit` does not send
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    gcs, dashboard, client, agent = _free_ports(4)
    folder = Path(tempfile.mkdtemp(prefix="supertiny-"))
    command = [
        *(_ray(), "start", "--head", "--block", "--disable-usage-stats"),
        *("--node-ip-address=127.0.0.1", f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"),
        *(f"--dashboard-agent-listen-port={agent}", "--min-worker-port=0", "--max-worker-port=0"),
        *(f"--num-cpus={num_cpus}", f"--temp-dir={folder / 'ray'}"),
    ]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # so that a job's `python` is this one
    own = {
        "PATH": path,
        "RAY_TMPDIR": str(folder),
    }  # the latter so that actors which look for "the" Ray find this one, and no other's traces
    with (folder / "start.log").open("w") as output:
        head = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**QUIET_AND_OFFLINE, **os.environ, **own},
            start_new_session=True,  # Ctrl-C is ours to pass on, in order
            preexec_fn=_end_with_parent,
        )
    take_sigterm_for_ctrl_c()
    try:
        cluster = LocalCluster(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}")
        for url in (f"{cluster.dashboard_url}/api/version", f"http://127.0.0.1:{agent}/api/local_raylet_healthz"):
            _wait_for(url, head, folder / "start.log", start_limit_seconds)  # the second takes the jobs that the first is sent
        log.info("local Ray: %d logical CPUs, dashboard %s, process %d", num_cpus, cluster.dashboard_url, head.pid)
        yield cluster
    finally:
        _end(head)
        shutil.rmtree(folder, ignore_errors=True)


def submit_job(cluster: LocalCluster, checkout: Path, entrypoint: list[str]) -> int:
    """Exit status of `ray job submit`, the job's log streamed to this terminal; Ctrl-C stops the job too.

    Raises:
        OpenCluster: others reach the job server, and it asks them for no token.
    """
    refuse_open(cluster.dashboard_url)
    submission_id = f"supertiny-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    address = ["--address", cluster.dashboard_url]
    runtime_env = ["--working-dir", str(checkout), "--runtime-env", str(checkout / "cluster" / "runtime_env.yaml")]
    command = [
        _ray(),
        "--logging-level",
        "warning",
        "job",
        "submit",
        *address,
        *runtime_env,
        "--submission-id",
        submission_id,
        "--",
        *entrypoint,
    ]
    try:
        return subprocess.run(command, check=False).returncode
    except KeyboardInterrupt:
        subprocess.run([_ray(), "job", "stop", *address, submission_id], check=False)
        raise


def _end_with_parent() -> None:
    """Have the kernel tell this process to end when its parent does, even by SIGKILL."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _ray() -> str:
    return str(Path(sys.executable).with_name("ray"))


def _wait_for(url: str, head: subprocess.Popen[bytes], start_log: Path, limit_seconds: float) -> None:
    deadline = time.monotonic() + limit_seconds
    while not _answers(url):
        if head.poll() is not None:
            raise NoProgress(f"Ray did not start (exit status {head.returncode}):\n{start_log.read_text()[-2000:]}")
        if time.monotonic() > deadline:
            raise NoProgress(f"Ray started, but {url} did not answer within {limit_seconds:.0f} s:\n{start_log.read_text()[-2000:]}")
        time.sleep(0.3)


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=2):
            return True
    except HTTPError as error:
        return error.code in (401, 403)  # it is up, and wants the token that Ray's own clients send
    except (URLError, OSError):
        return False


def _end(head: subprocess.Popen[bytes], patience_seconds: float = 20.0) -> None:
    """End the node's processes: `ray start --block` ends its children when it is asked to stop."""
    import psutil

    try:
        family = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    head.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=patience_seconds)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports
