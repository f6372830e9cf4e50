"""Make a tiny model from nothing, out of a task's own examples: the tokenizer, a teacher, a student's base.

The embedded task's shipped models, teacher first because the base takes its tokenizer:

    python jobs/pretrain.py --config jobs/configs/demo/pretrain-teacher.toml --set run_root=$PWD/runs/pretrain
    python jobs/pretrain.py --config jobs/configs/demo/pretrain-base.toml --set run_root=$PWD/runs/pretrain

The folders `teacher` and `base` in that run root are what lies in platform/supertiny/tasks/assistant/models.
"""

from supertiny.cli import run_job
from supertiny.train.pretrain_config import PretrainConfig


def main(config: PretrainConfig) -> None:
    from supertiny.train.pretrain import pretrain  # torch only once the config is good

    pretrain(config)


if __name__ == "__main__":
    raise SystemExit(run_job(PretrainConfig, main, default="jobs/configs/demo/pretrain-teacher.toml"))
