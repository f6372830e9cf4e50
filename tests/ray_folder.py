"""Where a test's own Ray keeps its files."""

from __future__ import annotations

from tempfile import TemporaryDirectory


def ray_folder() -> TemporaryDirectory[str]:
    """A folder of a short path, since sockets lie in it. A process of Ray's that ends late may still write there when it is removed."""
    return TemporaryDirectory(prefix="st-", ignore_cleanup_errors=True)
