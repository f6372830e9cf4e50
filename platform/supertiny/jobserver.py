"""Ray's job server: whoever reaches it without a token runs what he likes on every node, so an open one is not used."""

from __future__ import annotations

import ipaddress
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from supertiny.errors import OpenCluster

_MEND = (
    "start every node with RAY_AUTH_MODE=token and one RAY_AUTH_TOKEN (docs/operations.md, Tokens), or bind it to 127.0.0.1 "
    "(ray start --dashboard-host=127.0.0.1)"
)


def refuse_open(url: str, limit_seconds: float = 10.0) -> None:
    """Raise where a job server that other machines can reach lists its jobs to someone without a token.

    Args:
        url: `http://host:8265`.

    Raises:
        OpenCluster: it does; the message says how to close it.
    """
    if not is_local(urlsplit(url).hostname or "") and answers_without_token(url, limit_seconds):
        raise OpenCluster(f"the job server {url} is open to the network: it lists its jobs to a request without a token; {_MEND}")


def answers_without_token(url: str, limit_seconds: float = 10.0) -> bool:
    """Whether a request without a token gets the list of jobs; False where nothing answers."""
    try:
        with urlopen(Request(f"{url.rstrip('/')}/api/jobs/", headers={}), timeout=limit_seconds) as answer:
            return bool(answer.status == 200)
    except HTTPError:
        return False
    except (URLError, OSError):
        return False


def is_local(host: str) -> bool:
    """Whether a host's name or address is this machine's own loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
