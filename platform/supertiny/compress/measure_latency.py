"""Measures a latency model: cuts of a student with random weights, in vLLM."""

from __future__ import annotations

import logging
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from supertiny.artifacts import Artifact, make, open_artifact
from supertiny.compress.config import LatencyConfig
from supertiny.compress.export import copy_unchanged
from supertiny.compress.latency import LATENCY, MeasuredShape, fit, shapes_to_measure
from supertiny.compress.shapes import Shape, read_shape, shrink_config
from supertiny.compress.speed import measure_speed
from supertiny.compress.vocabulary import choose_ids, named_ids, read_vocabulary, renumber_settings, required_ids, write_tokenizer
from supertiny.errors import ConfigError, MissingInput
from supertiny.fresh import set_aside_stale
from supertiny.llm.folders import read_model_config
from supertiny.records import Prompt

log = logging.getLogger(__name__)


def measure_latency(config: LatencyConfig) -> Artifact:
    """The `latency` artifact, which `target_seconds_per_token` of a pruning is solved with. Engines are built in this process, in turn.

    Raises:
        ConfigError: an architecture that is not cut, or a student too small for it.
    """
    student = open_artifact(config.student, config.run_root, "model")
    set_aside_stale(config, {"student": student})
    values = read_model_config(student.path)
    shape = read_shape(values)
    cuts = cuts_to_measure(student.path, shape)

    def build(folder: Path) -> dict[str, Any]:
        times: dict[Shape, list[float]] = {each: [] for each in cuts}
        with tempfile.TemporaryDirectory() as temporary:
            folders = {each: Path(temporary) / str(at) for at, each in enumerate(cuts)}
            for each, path in folders.items():
                write_random(student.path, path, values, each, cuts[each])
            for _ in range(config.rounds):  # in turns, so that what else the machine does meets all alike
                for each, path in folders.items():
                    times[each].append(_seconds_per_token(path, config))
                    log.info("%s: %s, %.2f ms a token", config.name, _sizes(each), 1000 * times[each][-1])
        found = fit(shape, [_measured(each, statistics.median(runs)) for each, runs in times.items()])
        (folder / LATENCY).write_text(found.model_dump_json(indent=1))
        return found.model_dump(mode="json", exclude={"student"})

    return make(config, "latency", {"student": student}, build)


def cuts_to_measure(student: Path, shape: Shape) -> dict[Shape, list[int] | None]:
    """The shapes to measure, each with the tokens that it keeps: None for all, as for every shape where the vocabulary cannot be cut.

    Raises:
        ConfigError: a student too small for any cut.
    """
    try:
        vocabulary = read_vocabulary(student)
        required = required_ids(vocabulary, named_ids(student, shape.vocab_size))
        shapes = shapes_to_measure(shape, len(required))
        fewer = {each for each in shapes if each.vocab_size < shape.vocab_size}
        return {each: choose_ids(vocabulary, required, each.vocab_size, shape.vocab_size) if each in fewer else None for each in shapes}
    except (ConfigError, MissingInput) as error:
        log.warning("only layers and channels are cut to be measured: %s", error)
        return dict.fromkeys(shapes_to_measure(shape, shape.vocab_size))


def write_random(source: Path, folder: Path, values: dict[str, Any], shape: Shape, kept_ids: list[int] | None) -> None:
    """A plain model folder of random weights in the shape; `kept_ids` are its tokens where the vocabulary is cut."""
    smaller = shrink_config(values, shape, range(shape.num_hidden_layers))
    smaller = smaller if kept_ids is None else renumber_settings(smaller, kept_ids)
    models: Any = AutoModelForCausalLM
    models.from_config(AutoConfig.for_model(**smaller), dtype=torch.bfloat16).save_pretrained(folder)
    copy_unchanged(source, folder)
    if kept_ids is not None:
        write_tokenizer(source, folder, kept_ids)


def _seconds_per_token(folder: Path, config: LatencyConfig) -> float:
    prompts = [Prompt(id=str(at), messages=[{"role": "user", "content": f"set a timer for {at + 1} minutes"}]) for at in range(8)]
    return measure_speed(folder, prompts, [], config.engine, config.max_tokens, (1,)).seconds_per_token


def _measured(shape: Shape, seconds: float) -> MeasuredShape:
    return MeasuredShape(
        vocab_size=shape.vocab_size,
        num_hidden_layers=shape.num_hidden_layers,
        intermediate_size=shape.intermediate_size,
        seconds_per_token=seconds,
    )


def _sizes(shape: Shape) -> str:
    return f"{shape.vocab_size:,} tokens x {shape.num_hidden_layers} layers x {shape.intermediate_size:,}"
