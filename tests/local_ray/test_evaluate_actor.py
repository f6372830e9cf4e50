import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import ray
from ray.exceptions import RayActorError
from train_runs import name_of, wait_for

from supertiny.config import validate
from supertiny.errors import NoProgress, PlanTooBig
from supertiny.evaluate.actor import evaluator
from supertiny.evaluate.config import EvaluateConfig
from supertiny.evaluate.judge import read_predictions
from supertiny.evaluate.schema import EvaluationMetrics
from supertiny.evaluate.suites import evaluate

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]
SHIPPED = "package://supertiny.tasks.assistant/models"


def config(run_root: Path, **changes: object) -> EvaluateConfig:
    small = {"run_root": str(run_root), "num_prompts": 128, "latency_prompts": 16, "concurrency": 64}
    return validate(EvaluateConfig, {**small, **changes}, "test")


def ask_for_ever(actor: ray.actor.ActorHandle) -> None:
    while True:
        ray.get(actor.ready.remote())


def kill_in(method: str, process: psutil.Process) -> None:
    """An actor's process, as soon as it is in that method."""
    wait_for(lambda: method in name_of(process))
    process.kill()


def pid(actor: ray.actor.ActorHandle) -> int:
    """The actor's process."""
    found: int = ray.get(actor.__ray_call__.remote(lambda self: __import__("os").getpid()))
    return found


@pytest.mark.slow
def test_one_actor_measures_a_teacher_pipeline_and_a_student_on_the_same_prompts(tmp_path: Path) -> None:
    before = pid(evaluator(0, 60))
    teacher = evaluate(config(tmp_path, model=f"{SHIPPED}/teacher", system="teacher"))
    student = evaluate(config(tmp_path, model=f"{SHIPPED}/base"))
    assert pid(evaluator(0, 60)) == before
    assert (teacher.path.name, student.path.name) == ("eval-teacher", "eval-base")
    assert [row.prompt_id for row in read_predictions(teacher)] == [row.prompt_id for row in read_predictions(student)]
    ours, theirs = (EvaluationMetrics.model_validate(one.manifest.metrics) for one in (student, teacher))
    assert theirs.exact_match.value > 0.9
    assert theirs.exact_match.value > ours.exact_match.value
    assert theirs.tokens.model_calls > 128 >= ours.tokens.model_calls
    assert sum(part.n for part in theirs.slices.values()) == 128
    assert 0 < ours.latency_seconds.p50 <= ours.latency_seconds.p95
    right = sum(row.exact_match for row in read_predictions(teacher))
    assert theirs.exact_match.value == pytest.approx(right / 128)


def test_the_evaluator_leaves_its_cpu_to_others() -> None:
    evaluator(0, 60)
    deadline = time.monotonic() + 30  # what earlier actors held is counted back a little later
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.2)


def test_a_dead_evaluator_is_replaced() -> None:
    first = evaluator(0, 60)
    before = pid(first)
    ray.kill(first)
    with pytest.raises(RayActorError):
        ask_for_ever(first)  # it answers for a moment more
    assert pid(evaluator(0, 60)) != before


@pytest.mark.slow
def test_an_evaluation_whose_process_dies_is_made_by_another_one(tmp_path: Path) -> None:
    process = psutil.Process(pid(evaluator(0, 60)))
    with ThreadPoolExecutor(1) as beside:
        killed = beside.submit(kill_in, "Evaluator.measure", process)
        made = evaluate(config(tmp_path, model=f"{SHIPPED}/base", num_prompts=16, latency_prompts=2))
    killed.result()
    assert len(read_predictions(made)) == 16


def test_gpus_that_the_cluster_never_has_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(PlanTooBig, match=r"1 CPU and 64 GPUs of one node; the cluster's nodes have 8 and"):
        evaluate(config(tmp_path, model=f"{SHIPPED}/base", num_gpus=64))


def test_a_busy_cluster_is_waited_for_no_longer_than_the_limit(tmp_path: Path) -> None:
    with pytest.raises(NoProgress, match="no place came free for the evaluator within 1 s"):
        evaluator(64, 1)
