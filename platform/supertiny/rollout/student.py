"""The student's pass over accepted completions: how likely it finds each, for the filter `likelihood`."""

from __future__ import annotations

import asyncio
import atexit
import json
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from supertiny.cli import configure_logging
from supertiny.errors import ConfigError
from supertiny.records import Completion, Rollout
from supertiny.rollout.likelihood import Score
from supertiny.rollout.meter import Clock, Meter
from supertiny.rollout.teacher import OpenLlm, be_silent, opened
from supertiny.rollout.worker import clip, describe
from supertiny.rollout_table import read_steps

STUDENT_STEP = "filters.likelihood"
_ASKED = pa.schema([("rollout_id", pa.string()), ("messages", pa.string()), ("tools", pa.string()), ("text", pa.string())])
_SCORED = pa.schema(
    [
        ("rollout_id", pa.string()),
        ("student_logprob", pa.float64()),  # null where the student could not score it
        ("accepted", pa.bool_()),  # from here on as in a rollout table, so that progress is read off both alike
        ("reason", pa.string()),
        ("evidence", pa.string()),
        ("steps", pa.string()),
        ("seconds", pa.float32()),
    ]
)


class StudentActor:
    """The student, scoring many completions at a time."""

    def __init__(self, open_llm: OpenLlm) -> None:
        configure_logging()
        atexit.register(be_silent)
        self._llm, self._clock = opened(open_llm), Clock()

    async def __call__(self, rows: pa.Table) -> pa.Table:
        """The rows' scores."""
        scored = await asyncio.gather(*(self._score(row) for row in rows.to_pylist()))
        if self._llm.failure is not None:
            raise self._llm.failure
        return pa.Table.from_pylist(scored, _SCORED)

    async def _score(self, row: dict[str, Any]) -> dict[str, Any]:
        meter, started, logprob, evidence = Meter(self._llm, self._clock, STUDENT_STEP), time.monotonic(), None, ""
        try:
            logprob = mean_logprob(await meter.score(json.loads(row["messages"]), row["text"], tools=json.loads(row["tools"])))
        except Exception as error:  # too long for it, or nothing that its template or tokenizer takes; one that died ends the block
            evidence = clip(describe(error))
        return {
            "rollout_id": row["rollout_id"],
            "student_logprob": logprob,
            "accepted": logprob is not None,
            "reason": "" if logprob is not None else "not_scored",
            "evidence": evidence,
            "steps": json.dumps({name: step.model_dump() for name, step in meter.steps.items()}),
            "seconds": time.monotonic() - started,
        }


def mean_logprob(completion: Completion) -> float:
    """Mean log-probability of a scored completion's tokens, nats a token.

    Raises:
        ValueError: its engine gave none.
    """
    if not completion.token_logprobs:
        raise ValueError("the student's engine gave no log-probabilities")
    return fmean(completion.token_logprobs)


def write_unscored(blocks: Iterable[Path], scored: set[str], folder: Path) -> int:
    """Write the accepted rollouts of blocks that are not scored yet, each once, for Ray Data; how many they are."""
    folder.mkdir(parents=True, exist_ok=True)
    seen = set(scored)
    with pq.ParquetWriter(folder / "rows.parquet", _ASKED) as file:
        for path in blocks:
            table = pq.read_table(path, columns=[*_ASKED.names, "accepted"], partitioning=None)
            rows = [row for row in table.to_pylist() if row.pop("accepted") and row["rollout_id"] not in seen]
            seen.update(row["rollout_id"] for row in rows)
            file.write_table(pa.Table.from_pylist(rows, _ASKED))
    return len(seen) - len(scored)


class Scores:
    """All scores in some blocks, kept as Arrow does: as Python's own objects those of a million rollouts would take gigabytes."""

    def __init__(self, files: Iterable[Path]) -> None:
        tables = [pq.read_table(path, columns=["rollout_id", "student_logprob", "evidence", "steps"], partitioning=None) for path in files]
        self._table = pa.concat_tables(tables) if tables else _SCORED.empty_table()
        self._places = {name: at for at, name in enumerate(self._table.column("rollout_id").to_pylist())}

    def of(self, rollout_ids: Iterable[str]) -> dict[str, Score]:
        """By id, those that were scored."""
        places = [self._places[name] for name in rollout_ids if name in self._places]
        rows = self._table.take(pa.array(places, pa.int64())).to_pylist()
        return {
            row["rollout_id"]: Score(logprob=row["student_logprob"], evidence=row["evidence"], steps=read_steps(row["steps"]))
            for row in rows
        }


def with_score(rollout: Rollout, score: Score | None) -> Rollout:
    """The rollout with the student's score and what that took; the same where it was not asked for."""
    if score is None:
        return rollout
    seconds = rollout.engine_seconds + sum(step.engine_seconds for step in score.steps.values())
    return rollout.model_copy(update={"student_logprob": score.logprob, "steps": rollout.steps | score.steps, "engine_seconds": seconds})


def check_tokenizer(teacher: Path, student: Path) -> None:
    """Check that teacher and student turn text into the same tokens, by the bytes of their tokenizer.json.

    Raises:
        ConfigError: they do not, or one has none: the likelihood would be of other tokens than those that the student is to learn.
    """
    theirs, ours = teacher / "tokenizer.json", student / "tokenizer.json"
    if missing := [str(path) for path in (theirs, ours) if not path.is_file()]:
        raise ConfigError(f"filters.likelihood.student: no {' and no '.join(missing)}, so nobody can say whether the tokens are the same")
    if theirs.read_bytes() != ours.read_bytes():
        raise ConfigError(f"filters.likelihood.student: {ours} differs from the teacher's {theirs}; take a student of the same tokenizer")
