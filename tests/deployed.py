"""The served application on a cluster that the test's own process is not part of; it stays when the process that deployed it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from supertiny.serving.config import ServeConfig


def deploy(address: str, config: ServeConfig, port: int, path: str, log: Path, proxies: str = "EveryNode") -> None:
    """Deploy or change the application, with HTTP proxies where Serve's `proxy_location` says; returns when every replica runs."""
    environment = {**os.environ, "PYTHONPATH": path}
    with log.open("ab") as output:
        command = [sys.executable, __file__, address, str(port), proxies, config.model_dump_json()]
        ended = subprocess.run(command, env=environment, stdout=output, stderr=output, check=False, timeout=180)
    assert ended.returncode == 0, log.read_text()[-3000:]


def main(address: str, port: str, proxies: str, config: str) -> None:
    """What the process does."""
    import ray
    from ray import serve

    from supertiny.serving.app import build_app
    from supertiny.serving.run import APPLICATION

    ray.init(address, log_to_driver=False, logging_level="error")
    serve.start(proxy_location=proxies, http_options={"host": "127.0.0.1", "port": int(port)})
    app = build_app(ServeConfig.model_validate_json(config))
    serve.run_many([serve.RunTarget(app, name=APPLICATION, logging_config={"enable_access_log": False})])


if __name__ == "__main__":
    main(*sys.argv[1:])
