"""Look at every node: versions, GPUs, storage, clock, ports, way to the head, tokens, disk. Ends with 1 where something would fail later.

python jobs/doctor.py --set run_root=/shared/runs/mine
ray job submit --working-dir . --runtime-env cluster/runtime_env.yaml -- python jobs/doctor.py --set run_root=/shared/runs/mine
"""

from supertiny.cli import run_job
from supertiny.doctor.config import DoctorConfig


def main(config: DoctorConfig) -> None:
    from supertiny.doctor.examine import examine  # ray only once the config is good

    examine(config)


if __name__ == "__main__":
    raise SystemExit(run_job(DoctorConfig, main))
