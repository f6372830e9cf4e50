"""Teach a student the teacher's rollouts: cross-entropy on the accepted completions, forward KL on the teacher's top-k tokens.
On-policy, the student answers the rollouts' prompts itself, and the teacher scores.

python jobs/distill.py                 the embedded default; makes the demo's rollouts first if there are none
python jobs/distill.py --config jobs/configs/demo/heal.toml --set run_root=/shared/runs/demo
python jobs/distill.py --config jobs/configs/demo/on_policy.toml --set student=distill

Run it again to resume from the last checkpoint.
"""

from pathlib import Path

from supertiny.cli import run_job
from supertiny.config import load
from supertiny.rollout.config import RolloutConfig
from supertiny.train.config import DistillConfig


def main(config: DistillConfig) -> None:
    from supertiny.train.distill import distill, open_student  # torch and ray only once the config is good
    from supertiny.train.workers import check_fits

    open_student(config)  # what cannot work shows before the rollouts are made
    check_fits(config)
    demo = load(RolloutConfig, Path(__file__).parent / "configs" / "demo" / "rollout.toml")
    embedded = (config.rollouts, config.task.path) == (demo.name, demo.task.path)
    if embedded and not (Path(config.run_root).expanduser() / demo.name).exists():
        from supertiny.rollout.pipeline import rollout

        rollout(demo.model_copy(update={"run_root": config.run_root, "git_revision": config.git_revision}))
    distill(config)


if __name__ == "__main__":
    raise SystemExit(run_job(DistillConfig, main, default="jobs/configs/demo/distill.toml"))
