"""Quantize a student: 8-bit weights and activations, or 4-bit weights.

python jobs/quantize.py --config jobs/configs/demo/w8a8.toml --set student=heal
python jobs/quantize.py --config jobs/configs/demo/awq.toml
python jobs/quantize.py --dry-run --set student=heal
"""

from supertiny.cli import run_job
from supertiny.compress.config import QuantizeConfig


def main(config: QuantizeConfig) -> None:
    from supertiny.compress.quantize import quantize  # LLM Compressor only once the config is good
    from supertiny.pipeline.place import run_at_place

    run_at_place(quantize, config)


def estimate(config: QuantizeConfig) -> str:
    from supertiny.compress.dry_run import describe_format

    return describe_format(config)


if __name__ == "__main__":
    raise SystemExit(run_job(QuantizeConfig, main, default="jobs/configs/demo/w8a8.toml", estimate=estimate))
