"""Exit status 0 if this interpreter's packages are the ones of a lock file, torch built for the CPU and nothing of CUDA beside it.

python requirements/check.py requirements/cpu.lock
"""

import re
import sys
from importlib.metadata import distributions
from pathlib import Path

CUDA_PACKAGE = re.compile(r"nvidia-.*-cu\d+|nvidia-(cublas|cudnn|cuda|nccl)\b.*|cuda-(bindings|python|toolkit)|vllm$|cupy")


def differences(lock: str, installed: dict[str, str]) -> list[str]:
    """What is installed otherwise than a lock file says; packages that the lock does not name may stay, unless they are CUDA's."""
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", lock, re.MULTILINE))
    wrong = [
        f"{name}: {installed.get(_plain(name), 'missing')}, locked {pin}"
        for name, pin in pins.items()
        if installed.get(_plain(name)) != pin
    ]
    return wrong + [f"{name}: a CUDA package in a CPU environment" for name in installed if CUDA_PACKAGE.match(name)]


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main(lock_path: str) -> int:
    """The exit status."""
    installed = {_plain(distribution.metadata["Name"]): distribution.version for distribution in distributions()}
    problems = differences(Path(lock_path).read_text(), installed)
    for problem in problems:
        print(f"setup: error: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
