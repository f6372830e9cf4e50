"""Prove that vLLM serves the model that Hugging Face loads; no promotion is made without the proof.

python jobs/parity.py --set run_root=/runs/demo --set model=awq --set name=parity-awq
"""

from supertiny.cli import run_job
from supertiny.compress.config import ParityConfig


def main(config: ParityConfig) -> None:
    """Make the proof; a failed one ends the job with status 1."""
    from supertiny.compress.parity import check_passed, prove  # vLLM only once the config is good
    from supertiny.pipeline.place import run_at_place

    check_passed(run_at_place(prove, config))


if __name__ == "__main__":
    raise SystemExit(run_job(ParityConfig, main, default="jobs/configs/demo/parity.toml"))
