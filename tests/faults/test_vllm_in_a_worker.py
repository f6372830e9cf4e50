"""vLLM inside of a training worker, as TRL starts it to draw completions: the engine itself, without the GPU that TRL shares it by."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_rollouts import make_student

from supertiny.train.config import TrainConfig
from supertiny.train.workers import run_workers

pytestmark = [pytest.mark.soak, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.mark.usefixtures("local_ray")
def test_a_worker_that_compiles_draws_with_vllm_compiled(tmp_path: Path) -> None:
    config = TrainConfig(name="rl", student="base", run_root=str(tmp_path), num_workers=1)
    found = run_workers("drawing_worker:draw", make_student(tmp_path), config, tmp_path, compiles=True)
    assert found["tokens"] == 8
    assert found["compilation"] != "NONE"
