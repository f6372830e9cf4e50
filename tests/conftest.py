"""What every test gets: one Ray for the session, quiet and offline libraries, the cheap tests first."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from ray_folder import ray_folder

QUIET_AND_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "LLM_COMPRESSOR_LOG_LEVEL": "ERROR",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TQDM_DISABLE": "1",
    "OMP_NUM_THREADS": "1",  # several processes share two cores
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's coming default; without it every actor warns
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
RAY_TOKEN = {
    "RAY_AUTH_MODE": "token",  # unset, Ray's commands disagree: `ray start` wants a token that `ray job submit` does not send
    "RAY_AUTH_TOKEN": secrets.token_hex(32),  # given, none is written to the home folder
}
for name, value in {**QUIET_AND_OFFLINE, **RAY_TOKEN}.items():  # before anything reads them; Ray's processes inherit them
    os.environ.setdefault(name, value)
hypothesis.settings.register_profile("supertiny", deadline=None)  # an example's time says how busy the machine is
hypothesis.settings.load_profile("supertiny")


@pytest.hookimpl(tryfirst=True)  # before -m chooses by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Unit tests first, then files that need no Ray, then the rest: a small mistake shows in seconds. A file stays in one piece, so that
    what its tests share is made once."""
    for item in items:
        if "local_ray" in getattr(item, "fixturenames", ()):
            item.add_marker("ray")
    costs = {item: tuple(item.get_closest_marker(name) is not None for name in ("ray", "slow")) for item in items}
    dearest: dict[Path, tuple[bool, ...]] = {}
    for item, cost in costs.items():
        dearest[item.path] = max(cost, dearest.get(item.path, cost))
    items.sort(key=lambda item: ("unit" not in item.path.parts, dearest[item.path], item.path, costs[item]))


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One Ray for the whole session: 8 logical CPUs, since actors that only wait take one each."""
    import ray

    with ray_folder() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)  # actors import the tests' tasks
        patch.setenv("RAY_TMPDIR", folder)  # short, since sockets lie in it; actors that look for "the" Ray find this one by it
        ray.init(
            "local",  # never a cluster that RAY_ADDRESS names
            num_cpus=8,
            include_dashboard=True,  # Ray Train asks it for its controller's state, and waits 12 s for it at the end of every run
            object_store_memory=512 * 2**20,
            logging_level="warning",
        )
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of the source tree."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def growing(checkout: Path) -> Iterator[Any]:
    """A `GrowingCluster` with the groups of `growing_jobs`, whose workers import the tests' tasks."""
    from growing_cluster import GrowingCluster
    from growing_jobs import GROUPS, IDLE_SECONDS

    path = os.pathsep.join([str(checkout / "platform"), str(checkout / "tests")])
    with ray_folder() as folder, GrowingCluster(GROUPS, folder, path, idle_seconds=IDLE_SECONDS) as cluster:
        yield cluster


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
