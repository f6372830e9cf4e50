"""Which code runs: a hash over the package's sources, and whether the job's checkout has another than the one that was imported.

A job that is submitted to an image which holds supertiny itself runs the image's copy, whatever was uploaded beside it, unless
`cluster/runtime_env.yaml` puts the upload first. That is seldom what was meant, so it is said at the start.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

IMPORTED = Path(__file__).resolve().parent
"""The package that this process runs."""
IMAGE_REVISION = "SUPERTINY_REVISION"
"""Environment variable that an image sets to the revision that it was built of."""


def code_hash(package: Path = IMPORTED) -> str:
    """The first 12 hex digits of a sha256 over the names and contents of a package's Python files."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def image_revision() -> str | None:
    """The revision that this process's image was built of; None outside of our images."""
    return os.environ.get(IMAGE_REVISION)


def other_code_beside(checkout: Path) -> str | None:
    """What to tell of a checkout whose package is another than the imported one; None where they are the same, or it has none."""
    package = checkout / "platform" / "supertiny"
    if not package.is_dir() or package == IMPORTED or code_hash(package) == code_hash():
        return None
    image = image_revision()
    where = f"the image's revision {image}" if image else "the installed package"
    return (
        f"this runs {where} ({IMPORTED}, code {code_hash()}) and NOT the code beside the job ({package}, code {code_hash(package)}); "
        "submit with --runtime-env cluster/runtime_env.yaml to run the checkout, or build the image anew"
    )
