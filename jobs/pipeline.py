"""Run the whole chain: rollout, the curriculum, prune, heal until enough, quantize, an evaluation after each, a gate and a promotion.

    ray job submit --working-dir . --runtime-env cluster/runtime_env.yaml -- python jobs/pipeline.py \
        --config jobs/configs/demo/pipeline.toml --set run_root=/shared/runs/demo

Run it again to resume: what is finished is kept. Exit status 1 if the gate does not pass.
"""

from supertiny.cli import run_job
from supertiny.pipeline.config import PipelineConfig


def main(config: PipelineConfig) -> None:
    from supertiny.pipeline.run import run  # ray, torch and vLLM only once the config is good

    run(config)


if __name__ == "__main__":
    raise SystemExit(run_job(PipelineConfig, main, default="jobs/configs/demo/pipeline.toml"))
