"""The rollout stage with a real engine on real Ray, killed in the middle and run again."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections import Counter
from io import StringIO
from pathlib import Path

import pytest
from rollout_jobs import start_job, wait_for_blocks
from tiny_model import make_tiny_model
from tiny_rollouts import make_student

from supertiny.artifacts import open_artifact
from supertiny.config import TaskConfig, validate
from supertiny.errors import ConfigError, CorruptArtifact, MissingInput, NoProgress, PlanTooBig
from supertiny.rollout.blocks import finished_ids
from supertiny.rollout.config import RolloutConfig
from supertiny.rollout_table import read_rejected, read_rollouts

PROMPTS, GROUP, BLOCK = 30, 2, 6
CONFIG = f"""
run_root = "{{root}}"
group_size = {GROUP}

[task]
path = "tiny_task:TinyTask"
options = {{{{ num_prompts = {PROMPTS}, asked = "{{root}}/asked", seconds = 0.5 }}}}

[layout]
block_rows = {BLOCK}
blocks_in_flight = 1
no_progress_seconds = 120
log_every_seconds = 1
"""
TINY = """
[engine]
max_model_len = 128
max_num_seqs = 8
kv_cache_gib = 0.1
num_threads = 1
"""
SCRIPTED = "\n[scripted]\n"


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.slow
def test_a_rollout_killed_in_the_middle_goes_on_where_it_was_and_every_row_is_there_once(tmp_path: Path, checkout: Path) -> None:
    make_tiny_model(tmp_path)
    config, log = tmp_path / "rollout.toml", tmp_path / "log"
    config.write_text(f'teacher = "tiny"\n{CONFIG.format(root=tmp_path)}{TINY}')

    job = start_job(checkout, config, log)
    try:
        before = wait_for_blocks(job, tmp_path, 2 * BLOCK)
    finally:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait(10)
    before |= finished_ids(next(tmp_path.glob(".rollouts.*.partial/.done")))
    assert 0 < len(before) < PROMPTS * GROUP

    again = start_job(checkout, config, log)
    try:
        assert again.wait(120) == 0, log.read_text()[-3000:]
    finally:
        again.kill()

    folder = open_artifact("rollouts", str(tmp_path), "rollouts").path
    accepted, rejected = read_rollouts(folder), read_rejected(folder)
    expected = [f"p{at:03d}/{index}" for at in range(PROMPTS) for index in range(GROUP)]
    assert sorted(row.rollout_id for row in accepted + rejected) == expected
    assert [row.rollout_id for row in accepted] == sorted(row.rollout_id for row in accepted)

    asked = Counter((tmp_path / "asked").read_text().split())
    whole = [f"p{at:03d}" for at in range(PROMPTS) if {f"p{at:03d}/{index}" for index in range(GROUP)} <= before]
    assert whole
    assert {prompt: asked[prompt] for prompt in whole} == dict.fromkeys(whole, GROUP)  # nothing finished was redone
    assert len(asked) == PROMPTS
    assert f"{PROMPTS * GROUP - len(before)} rollouts to make, {len(before)} made before" in log.read_text()

    reasons = {row.rollout_id: row.verdict.reason for row in rejected}
    assert reasons == {f"p0{tens}7/{index}": "unlucky" for tens in range(3) for index in range(GROUP)}
    ledger = json.loads((folder / "ledger.json").read_text())
    assert (ledger["rollouts"], ledger["accepted"], ledger["rejected"]) == (PROMPTS * GROUP, len(accepted), len(rejected))

    first = accepted[0]
    assert first.completion.top_k is not None
    assert [len(ids) for ids in first.completion.top_k.ids] == [5] * len(first.completion.token_ids)
    assert first.prompt.reference is not None
    assert [call.arguments for call in first.prompt.reference] == [{"number": 0}]
    assert sorted(path.name for path in folder.iterdir()) == ["ledger.json", "manifest.json", "rejected.parquet", "rollouts.parquet"]


@pytest.mark.ray
@pytest.mark.slow
def test_a_budget_that_is_spent_ends_the_job_and_keeps_what_was_made(tmp_path: Path, checkout: Path) -> None:
    config, log = tmp_path / "rollout.toml", tmp_path / "log"
    config.write_text(CONFIG.format(root=tmp_path) + SCRIPTED)
    job = start_job(checkout, config, log)
    try:
        wait_for_blocks(job, tmp_path, BLOCK)
    finally:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait(10)
    before = finished_ids(next(tmp_path.glob(".rollouts.*.partial/.done")))

    config.write_text(CONFIG.format(root=tmp_path) + SCRIPTED + "\n[cost]\nbudget_usd = 1e-9\n")
    poor = start_job(checkout, config, log)
    assert poor.wait(120) == 1
    assert "error: BudgetExceeded: " in log.read_text()
    assert not (tmp_path / "rollouts").exists()
    assert finished_ids(next(tmp_path.glob(".rollouts.*.partial/.done"))) == before

    config.write_text(CONFIG.format(root=tmp_path) + SCRIPTED + "\n[cost]\nbudget_usd = 1e9\n")
    rich = start_job(checkout, config, log)
    try:
        assert rich.wait(120) == 0, log.read_text()[-3000:]
    finally:
        rich.kill()
    ledger = json.loads((open_artifact("rollouts", str(tmp_path), "rollouts").path / "ledger.json").read_text())
    assert ledger["rollouts"] == PROMPTS * GROUP
    assert f"{PROMPTS * GROUP - len(before)} rollouts to make, {len(before)} made before" in log.read_text()
    assert 0 < ledger["cost"]["used_usd"] <= ledger["cost"]["reserved_usd"]
    assert ledger["cost"]["wall_seconds"] > ledger["last_attempt"]["seconds"]


def endpoint_config(root: Path, **settings: object) -> RolloutConfig:
    """A rollout whose model is an endpoint that nobody serves."""
    task = TaskConfig(options={"train_prompts": 2})
    endpoint = {"base_url": "http://127.0.0.1:1/v1", "model": "m", "max_retries": 0}
    values = {"run_root": str(root), "task": task, "endpoint": endpoint, "layout": {"log_every_seconds": 0.2, **settings}}
    return validate(RolloutConfig, values, "test")


@pytest.mark.ray
def test_a_model_that_is_gone_ends_the_job_and_rejects_nothing(tmp_path: Path, local_ray: None) -> None:
    from supertiny.rollout.pipeline import rollout

    with pytest.raises(NoProgress, match="ConnectError"):
        rollout(endpoint_config(tmp_path))
    assert not list(tmp_path.glob("**/rejected.parquet"))


@pytest.mark.ray
def test_a_key_that_is_not_set_where_the_engines_run_is_named(tmp_path: Path, local_ray: None) -> None:
    from supertiny.rollout.pipeline import rollout

    config = endpoint_config(tmp_path)
    assert config.endpoint is not None
    with pytest.raises(ConfigError, match=r"NO_SUCH_KEY is not set where the endpoint is called from$"):
        rollout(config.model_copy(update={"endpoint": config.endpoint.model_copy(update={"api_key_env": "NO_SUCH_KEY"})}))


@pytest.mark.ray
def test_more_engines_than_the_cluster_holds_are_refused_at_once_with_needs_and_haves(tmp_path: Path, local_ray: None) -> None:
    from supertiny.rollout.pipeline import rollout

    with pytest.raises(PlanTooBig, match=r"rollout needs 101 CPUs \(100 engines\), the cluster has 8"):
        rollout(endpoint_config(tmp_path, num_engines=100))


def test_an_error_of_ours_from_an_actor_has_its_own_message_and_not_rays_traceback() -> None:
    from ray.exceptions import RayTaskError

    from supertiny.rollout.pipeline import own_error

    ours = ConfigError("set the key")
    rays = RayTaskError("submit", "Traceback (most recent call last): ...", ours).as_instanceof_cause()
    assert isinstance(rays, ConfigError)
    outer = RuntimeError("Ray Data")
    outer.__cause__ = rays
    assert str(own_error(outer)) == str(own_error(rays)) == "set the key"
    advised = ConfigError(
        "set the key\nFailed to apply UDF transform after 1/1 attempts (total backoff 0.0s).\nTo change retry attempts, …"
    )
    assert (type(own_error(advised)), str(own_error(advised))) == (ConfigError, "set the key")
    nothing_of_ours = RuntimeError("lost")
    assert own_error(nothing_of_ours) is nothing_of_ours


def test_what_ray_data_says_of_an_error_of_ours_is_no_more_than_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    from supertiny.rollout.pipeline import hide_tracebacks

    said = StringIO()
    monkeypatch.setattr(logging.getLogger("ray.data"), "handlers", [logging.StreamHandler(said)])  # it has one to standard error
    hide_tracebacks()
    logger = logging.getLogger("ray.data.exceptions")
    try:
        raise ConfigError("set the key")
    except ConfigError:
        logger.exception("Full stack trace:")
    logger.error("Exception occurred in Ray Data. If you continue to see this, please open an issue on the Ray project GitHub page")
    logger.error("retrying")
    assert said.getvalue() == "retrying\n"


def test_a_teacher_that_is_not_there_is_missed_before_ray_starts(tmp_path: Path) -> None:
    from supertiny.rollout.pipeline import rollout

    with pytest.raises(MissingInput, match="nothing at"):
        rollout(RolloutConfig(run_root=str(tmp_path), teacher="tiny"))


def test_a_teacher_whose_weights_were_cut_short_is_found_before_ray_starts(tmp_path: Path) -> None:
    from supertiny.rollout.pipeline import rollout

    weights = make_tiny_model(tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CorruptArtifact, match=r"model\.safetensors: .* bytes, the manifest says"):
        rollout(RolloutConfig(run_root=str(tmp_path), teacher="tiny"))


def test_prompts_that_are_not_those_that_were_asked_for_are_found_before_ray_starts(tmp_path: Path) -> None:
    from supertiny.rollout.pipeline import rollout

    task = TaskConfig(path="short_task:ShortTask", options={"num_prompts": 3})
    with pytest.raises(CorruptArtifact, match="the prompts of split train have sha256"):
        rollout(validate(RolloutConfig, {"run_root": str(tmp_path), "task": task, "scripted": {}, "prompts_sha256": "0" * 64}, "test"))


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.slow
def test_the_students_likelihood_is_scored_on_real_engines_and_filters_what_it_finds_unlikely(tmp_path: Path, local_ray: None) -> None:
    from supertiny.rollout.pipeline import rollout

    make_tiny_model(tmp_path, "tiny")
    make_tiny_model(tmp_path, "student")
    engine = {"max_model_len": 128, "max_num_seqs": 8, "kv_cache_gib": 0.1, "num_threads": 1}
    task = {"path": "tiny_task:TinyTask", "options": {"num_prompts": 6, "asked": str(tmp_path / "asked"), "seconds": 0}}
    likelihood = {"student": "student", "engine": engine, "min_logprob": -1000.0}
    values = {"run_root": str(tmp_path), "teacher": "tiny", "task": task, "engine": engine, "filters": {"likelihood": likelihood}}
    made = rollout(validate(RolloutConfig, values, "test"))

    rows = read_rollouts(made.path)
    assert len(rows) == 12
    assert all(row.student_logprob is not None and -1000 < row.student_logprob < 0 for row in rows)
    ledger = json.loads((made.path / "ledger.json").read_text())
    assert ledger["by_pipeline_step"]["filters.likelihood"]["model_calls"] == 12
    assert set(ledger["cost"]["by_pipeline_step"]) == {"unnamed", "filters.likelihood"}
    assert set(made.manifest.parents) == {"teacher", "student"}


def test_a_student_that_is_not_there_or_speaks_other_tokens_is_refused_before_ray_starts(tmp_path: Path) -> None:
    from supertiny.rollout.pipeline import rollout

    make_tiny_model(tmp_path, "tiny")
    likelihood = {"student": "student", "min_logprob": -1.0}
    config = validate(RolloutConfig, {"run_root": str(tmp_path), "teacher": "tiny", "filters": {"likelihood": likelihood}}, "test")
    with pytest.raises(MissingInput, match=r"nothing at .*student"):
        rollout(config)
    make_student(tmp_path, "student")
    with pytest.raises(ConfigError, match=r"student/tokenizer.json differs from the teacher's"):
        rollout(config)
