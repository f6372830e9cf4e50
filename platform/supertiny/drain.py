"""Tells Ray that this machine will be taken away: nothing new is placed on it, and training writes a checkpoint.

python -m supertiny.drain --seconds 25                 now, and waits so long: a pod's preStop hook, which comes before SIGTERM
python -m supertiny.drain --seconds 110 --watch aws    asks the cloud every five seconds; also gcp
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable
from http import HTTPStatus
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from supertiny.cli import configure_logging

WATCHED = {
    "aws": ("http://169.254.169.254/latest/meta-data/spot/instance-action", {}),
    "gcp": ("http://metadata.google.internal/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"}),
}
"""Where a machine is told of its end. AWS answers 404 until then, Google FALSE."""
SESSIONS = {"aws": "http://169.254.169.254/latest/api/token"}
"""Where a session is to be had first: newer machines of AWS answer nobody without (IMDSv2)."""
_SESSION_SECONDS = 60
_POLL_SECONDS = 5.0
log = logging.getLogger(__name__)


def announce(node_id: str, gcs_address: str, seconds: float, why: str) -> None:
    """Tell the head that a node ends in so many seconds.

    Raises:
        RuntimeError: it does not take that, such as for a node that it does not know.
    """
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # type: ignore[attr-defined]

    deadline = int((time.time() + seconds) * 1000)
    client = GcsClient(gcs_address)
    accepted, said = client.drain_node(node_id, DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"), why, deadline)
    if not accepted:
        raise RuntimeError(f"the head does not take the end of node {node_id}: {said}")
    log.warning("node %s ends in %.0f s: %s", node_id, seconds, why)


def ends(url: str, headers: dict[str, str], session_url: str | None = None) -> bool:
    """Whether a cloud's metadata service says that this machine will be taken away."""
    try:
        if session_url is not None:
            headers = {**headers, "X-aws-ec2-metadata-token": _session(session_url)}
        with urlopen(Request(url, headers=headers), timeout=2) as answer:
            return answer.read().decode().strip() not in ("", "FALSE")
    except HTTPError as error:
        if error.code != HTTPStatus.NOT_FOUND:  # which is no
            log.warning("%s does not say whether this machine ends: %s", url, error)
        return False
    except (URLError, OSError) as error:
        log.warning("%s does not answer: %s", url, error)
        return False


def _session(url: str) -> str:
    asking = Request(url, method="PUT", headers={"X-aws-ec2-metadata-token-ttl-seconds": str(_SESSION_SECONDS)})
    with urlopen(asking, timeout=2) as answer:
        return str(answer.read().decode())


def wait_until(happened: Callable[[], bool]) -> None:
    """Ask again and again."""
    while not happened():
        time.sleep(_POLL_SECONDS)


def main() -> None:
    """Wait for what the command line names, announce this node's end, and wait so long that a checkpoint is written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=25, help="how long this machine still has")
    parser.add_argument("--watch", choices=sorted(WATCHED), help="the cloud to ask; without, the end is announced at once")
    flags = parser.parse_args()
    configure_logging()
    node_id, gcs_address = _this_node()
    if flags.watch:
        wait_until(lambda: ends(*WATCHED[flags.watch], SESSIONS.get(flags.watch)))
    announce(node_id, gcs_address, flags.seconds, "the machine is taken away")
    time.sleep(flags.seconds)


def _this_node() -> tuple[str, str]:
    """This machine's id in the cluster, and where its head is; by way of a driver that leaves again."""
    import ray

    ray.init(address="auto", logging_level=logging.WARNING, log_to_driver=False)
    context = ray.get_runtime_context()
    found = context.get_node_id(), str(context.gcs_address)
    ray.shutdown()
    return found


if __name__ == "__main__":
    main()
