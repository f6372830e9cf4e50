"""What a cluster has to be like for the stages to run on it."""

from __future__ import annotations

from pydantic import Field

from supertiny.config import JobConfig


class DoctorConfig(JobConfig):
    """Look at every node and say what would fail later, and what mends it."""

    min_disk_gib: float = Field(20, gt=0)
    """Free space that every node needs where Ray keeps its session, and `run_root` where that is, GiB."""
    min_shm_fraction: float = Field(0.9, gt=0, le=1)
    """Share of a node's object store that has to fit into its /dev/shm; below, Ray keeps objects on the disk, many times slower."""
    max_clock_seconds: float = Field(2.0, gt=0)
    """Largest difference of a node's clock to this one's; leases, deadlines and logs go by it."""
    min_open_files: int = Field(4096, ge=256)
    """Smallest limit of open files (`ulimit -n`) of a worker; each actor and each connection takes some."""
    min_driver: int = Field(580, ge=1)
    """Oldest major version of a GPU's driver; CUDA 13, which the GPU images have, starts on none before 580."""
    ports: tuple[int, ...] = (8000,)
    """Ports that serving will listen on, which nothing else may hold on any node."""
    node_limit_seconds: float = Field(60, gt=0)
    """Longest wait for what a node says of itself."""
