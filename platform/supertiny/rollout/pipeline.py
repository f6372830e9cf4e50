"""The rollout stage: prompts through the teacher pipeline on Ray Data, judged, filtered and published.

In the folder being made, besides what is published:

    .rows/     the rollouts still to be made, as Parquet
    .blocks/   finished rollouts, a file a block
    .done/     their ids: Ray Data's row-level checkpoint
    .spent/    wall seconds of all attempts
    .unscored/, .scores/, .scored/    the same three for the student's pass over what is accepted
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from fractions import Fraction
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import ray
import ray.data
from ray.data.checkpoint import CheckpointConfig, IdColumnCheckpointManager

from supertiny.artifacts import Artifact, make, open_artifact
from supertiny.cost import machine_price
from supertiny.errors import CorruptArtifact, PlanTooBig, SupertinyError
from supertiny.llm.folders import check_folders
from supertiny.llm.http import HttpLlm
from supertiny.llm.scripted import ScriptedLlm
from supertiny.llm.vllm import VllmLlm
from supertiny.records import Rollout
from supertiny.rollout.blocks import finished_files, finished_ids, finished_names, write_rows
from supertiny.rollout.config import LayoutConfig, RolloutConfig
from supertiny.rollout.estimate import MEASURED_PROMPTS, cost
from supertiny.rollout.filters import filter_groups
from supertiny.rollout.fit import engines_that_fit
from supertiny.rollout.gather import in_order, whole_groups
from supertiny.rollout.ledger import LEDGER, add, in_one_line, publish, steps_of, warning, write_tables
from supertiny.rollout.metrics import RayMetrics
from supertiny.rollout.progress import Goal, Tally, endpoint_usd, watch
from supertiny.rollout.prompts import load_prompts, with_hash
from supertiny.rollout.spending import Spending
from supertiny.rollout.student import Scores, StudentActor, check_tokenizer, with_score, write_unscored
from supertiny.rollout.teacher import OpenLlm, TeacherActor
from supertiny.room import NO_GROWTH, can_grow_to, nodes_there

log = logging.getLogger(__name__)


WORKING_FOLDERS = (".rows", ".blocks", ".done", ".spent", ".unscored", ".scores", ".scored")
_PROMPTS_AT_ONCE = 500
_RAYS_ADVICE = re.compile(r"\nFailed to .* after \d+/\d+ attempts \(total backoff")
"""What Ray Data writes behind the message of an error: how to have it try again."""


def rollout(config: RolloutConfig) -> Artifact:
    """The `rollouts` artifact: `rollouts.parquet` accepted, `rejected.parquet` with reasons, `ledger.json` the counts.

    Killed and run again, it goes on with the rows that no finished block holds.

    Raises:
        MissingInput: the teacher or the student is not there.
        ConfigError: there are no prompts, or two of one id; the models do not share a tokenizer, the teacher's cannot be split as its
            engine says, or vLLM runs no such adapter.
        CorruptArtifact: the prompts are not those of `prompts_sha256`.
        PlanTooBig: the cluster cannot hold the engines and one task beside them.
        NoProgress: an engine or the cluster stood still.
        BudgetExceeded: the rollouts cost, or will cost, more than the budget; what was made is kept for the next attempt.
    """
    machine_price(config.cost.machine, config.cost.prices)
    if unpriced := config.endpoints_without_price():
        log.warning("nobody knows what %s costs: no dollars are counted for it; set its price", " and ".join(unpriced))
    open_llm, parents = _teacher(config)
    open_student = None
    if config.filters.likelihood is not None:
        student = parents["student"] = open_artifact(config.filters.likelihood.student, config.run_root, "model")
        if "teacher" in parents:
            check_tokenizer(parents["teacher"].path, student.path)
        check_folders(student.path, config.filters.likelihood.engine)
        open_student = partial(VllmLlm, str(student.path), config.filters.likelihood.engine)
    return make(with_hash(config), "rollouts", parents, lambda folder: _build(config, open_llm, open_student, folder))


def _teacher(config: RolloutConfig) -> tuple[OpenLlm, dict[str, Artifact]]:
    """What builds the model that the pipeline calls, and the artifact that it is."""
    if config.endpoint is not None:
        return partial(HttpLlm, config.endpoint), {}
    if config.scripted is not None:
        return partial(ScriptedLlm.from_config, config.scripted), {}
    teacher = open_artifact(config.teacher, config.run_root, "model")
    check_folders(teacher.path, config.engine)
    return partial(VllmLlm, str(teacher.path), config.engine), {"teacher": teacher}


def _build(config: RolloutConfig, open_llm: OpenLlm, open_student: OpenLlm | None, folder: Path) -> dict[str, Any]:
    if (folder / LEDGER).exists():  # finished but for its manifest
        metrics: dict[str, Any] = json.loads((folder / LEDGER).read_text())
    else:
        expected_ids, num_left = _write_rows(config, folder)
        usd_per_hour = machine_price(config.cost.machine, config.cost.prices).usd_per_hour * config.cost.num_machines
        spending = Spending(folder / ".spent" / "spent.json", usd_per_hour, config.cost.budget_usd)
        spending.endpoint_usd = endpoint_usd(finished_files(folder / ".blocks", folder / ".done"))
        speed = _generate(config, open_llm, folder, num_left, spending) if num_left else {}
        if open_student is not None:
            _score(config, open_student, folder, spending)
        metrics = _finish(config, folder, expected_ids, speed, spending)
    for name in WORKING_FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    return metrics


def _write_rows(config: RolloutConfig, folder: Path) -> tuple[list[str], int]:
    """The ids of all rollouts, and how many no finished block holds yet: those are written for Ray Data. The prompts are then let go."""
    prompts = load_prompts(config)
    finished = finished_ids(folder / ".done")
    ids = [f"{prompt.id}/{index}" for prompt in prompts for index in range(config.group_size)]
    rows = ((name, at % config.group_size, prompts[at // config.group_size]) for at, name in enumerate(ids) if name not in finished)
    num_left = write_rows(rows, folder / ".rows")
    log.info("%s: %s rollouts to make, %s made before", config.name, num_left, len(finished))
    return ids, num_left


def _finish(
    config: RolloutConfig, folder: Path, expected_ids: Sequence[str], speed: dict[str, float], spending: Spending
) -> dict[str, Any]:
    layers: dict[str, Any] = {"rejected_by_layer": {}, "pass_rates": {}}
    counts = write_tables(folder, _filtered(config, folder, expected_ids, layers))
    more = {
        "rejected_by_layer": layers["rejected_by_layer"],
        "pass_rates": {rate: layers["pass_rates"][rate] for rate in sorted(layers["pass_rates"], key=Fraction)},
        "cost": cost(counts["accepted"], spending.seconds, steps_of(counts), config.layout.num_engines[1], spending.usd_per_hour),
        "endpoints_without_price": config.endpoints_without_price(),
        "last_attempt": speed,
    }
    ledger = publish(folder, counts, more)
    log.info("%s: %s", config.name, in_one_line(ledger))
    if doubt := warning(ledger):
        log.warning("%s: %s", config.name, doubt)
    return ledger


def _filtered(config: RolloutConfig, folder: Path, expected_ids: Sequence[str], layers: dict[str, Any]) -> Iterator[list[Rollout]]:
    """The filtered rollouts of some prompts at a time, or of all where prompts are compared; what the layers did is added to `layers`."""
    scores = Scores(finished_files(folder / ".scores", folder / ".scored"))
    made = in_order(finished_files(folder / ".blocks", folder / ".done"), expected_ids)
    for groups in whole_groups(made, None if config.filters.max_similarity is not None else _PROMPTS_AT_ONCE):
        found = scores.of(row.rollout_id for row in groups)
        filtered = filter_groups([with_score(row, found.get(row.rollout_id)) for row in groups], config.filters, found)
        add(layers, {"rejected_by_layer": filtered.rejected_by_layer, "pass_rates": filtered.pass_rates})
        yield filtered.rollouts


def _generate(config: RolloutConfig, open_llm: OpenLlm, folder: Path, num_left: int, spending: Spending) -> dict[str, float]:
    """Make every rollout that no finished block holds yet, and say how fast that was, the engine's start included."""
    blocks, done = folder / ".blocks", folder / ".done"
    seen = finished_names(done)
    spending.check(0, num_left)
    num_engines, written = _start(config.layout, TeacherActor, (open_llm, config), folder / ".rows", blocks, done)
    tally = Tally(blocks, done, seen=seen)
    watch(written, tally, _goal(config, num_left, num_engines), spending, RayMetrics(config.name).tell)
    spending.save()
    _check_all(tally, num_left)
    seconds = tally.seconds
    return {"seconds": round(seconds, 3), "rollouts_per_second": tally.rollouts / seconds, "tokens_per_second": tally.tokens / seconds}


def _goal(config: RolloutConfig, rollouts: int, num_engines: int) -> Goal:
    layout = config.layout
    return Goal(
        rollouts=rollouts,
        measured_rollouts=MEASURED_PROMPTS * config.group_size,
        num_engines=num_engines,
        log_every_seconds=layout.log_every_seconds,
        no_progress_seconds=layout.no_progress_seconds,
    )


def _score(config: RolloutConfig, open_student: OpenLlm, folder: Path, spending: Spending) -> None:
    """Have the student score every accepted rollout that no finished block of scores holds yet."""
    blocks, done, rows = folder / ".scores", folder / ".scored", folder / ".unscored"
    num_left = write_unscored(finished_files(folder / ".blocks", folder / ".done"), finished_ids(done), rows)
    log.info("%s: %s accepted rollouts for the student to score", config.name, num_left)
    if not num_left:
        return
    tally = Tally(blocks, done, seen=finished_names(done))
    num_engines, written = _start(config.layout, StudentActor, (open_student,), rows, blocks, done)
    watch(written, tally, _goal(config, num_left, num_engines), spending, lambda *_: None)  # these rows are in the metrics already
    spending.save()
    _check_all(tally, num_left)


def _check_all(tally: Tally, num_left: int) -> None:
    if tally.rollouts < num_left:
        raise CorruptArtifact(f"{tally.done}: Ray Data finished but its checkpoint does not hold every row; was the checkpoint off?")


def _start(
    layout: LayoutConfig, actor: type[Any], arguments: tuple[Any, ...], rows: Path, blocks: Path, done: Path
) -> tuple[int, Future[None]]:
    """Begin to send rows through actors into blocks; how many actors there will be, and what ends with the last block."""
    if not ray.is_initialized():
        ray.init(include_dashboard=False, logging_level=logging.WARNING)
    hide_tracebacks()
    num_engines = check_fits(layout)
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.execution_options = ray.data.ExecutionOptions(label_selector=layout.labels or None)  # of all tasks, not the engines alone
    context.raise_original_map_exception = True  # else ours is lost on the way from the actor
    context.checkpoint_config = CheckpointConfig(
        id_column="rollout_id", checkpoint_path=str(done), checkpoint_manager_cls=_RowsChosenBefore, delete_checkpoint_on_success=False
    )
    with ray.data.DataContext.current(context):
        dataset = _dataset(layout, actor, arguments, rows)
    written: Future[None] = Future()
    Thread(target=_write_blocks, args=(dataset, blocks, layout.num_engines[1], written), daemon=True).start()
    return num_engines, written


def _dataset(layout: LayoutConfig, actor: type[Any], arguments: tuple[Any, ...], rows: Path) -> ray.data.Dataset:
    fewest, most = layout.num_engines
    return (
        ray.data.read_parquet(str(rows))
        .repartition(target_num_rows_per_block=layout.block_rows)  # without it small files become one block: no checkpoints
        .map_batches(
            actor,
            fn_constructor_args=arguments,
            batch_size=layout.block_rows if layout.gpus_per_engine else None,  # the block either way; Ray Data asks for a number with GPUs
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                min_size=fewest, max_size=most, max_concurrent_calls_per_actor=layout.blocks_in_flight
            ),  # Ray Data's default restarts an actor that died, and calls it again with the block that it had
            num_cpus=layout.cpus_per_engine,
            num_gpus=layout.gpus_per_engine,
        )
    )


def _write_blocks(dataset: ray.data.Dataset, blocks: Path, at_once: int, written: Future[None]) -> None:
    """Each finished block, by a task that takes no CPU: one that did was seen to wait until the engines had ended."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="You've enabled checkpointing")  # Ray only warns when it switches it off
            dataset.write_parquet(str(blocks), ray_remote_args={"num_cpus": 0}, concurrency=at_once)
        written.set_result(None)
    except BaseException as error:
        written.set_exception(own_error(error))


def own_error(error: BaseException) -> BaseException:
    """Our own error inside Ray's, where there is one: its message is enough, and Ray's of the same class has a traceback for one."""
    inner: BaseException | None = error
    while inner is not None:
        deeper = getattr(inner, "cause", None) or inner.__cause__
        if isinstance(inner, SupertinyError) and not isinstance(deeper, SupertinyError):
            return type(inner)(_RAYS_ADVICE.split(str(inner))[0])
        inner = deeper
    return error


def hide_tracebacks() -> None:
    """Keep those of Ray Data, hundreds of lines for an error of ours, out of what a person sees; what fails is raised here, too."""
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # the other one writes the session's file, which has all
            handler.addFilter(_has_no_traceback)


def _has_no_traceback(record: logging.LogRecord) -> bool:
    return not record.exc_info and "please open an issue on the Ray project" not in record.getMessage()


def check_fits(layout: LayoutConfig) -> int:
    """How many engines will run on this driver's cluster, as it is or as it can grow; raises as `engines_that_fit`."""
    try:
        return engines_that_fit(layout, nodes_there(layout.labels))
    except PlanTooBig as error:
        fewest, _ = layout.num_engines
        engine = {"CPU": layout.cpus_per_engine, "GPU": layout.gpus_per_engine}
        if not can_grow_to([*[(engine, layout.labels)] * fewest, ({"CPU": 1}, layout.labels)]):
            raise PlanTooBig(f"{error}; {NO_GROWTH}") from None
        return fewest


class _RowsChosenBefore(IdColumnCheckpointManager):
    """Removes what a cut-off write left, and asks for no filter of rows: only rows without a checkpoint are read.

    Ray's own filter is an actor that takes a CPU, the second of two, and then nothing else would run.
    """

    def load_checkpoint(self, data_file_dir: str | None = None, data_file_filesystem: Any = None) -> tuple[None, int]:
        self._clean_pending_checkpoints(data_file_dir, data_file_filesystem)
        return None, 0
