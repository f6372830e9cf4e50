"""The rollout table: one Parquet row a rollout, its teacher log-probabilities tied to the tokens that they belong to.

In a `rollouts` artifact: `rollouts.parquet` the accepted rows, `rejected.parquet` the others with reason and evidence.

Shapes: T completion tokens, K teacher tokens a position. Lists of (T, K) are stored flat, position by position.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from supertiny.errors import CorruptArtifact, MissingInput
from supertiny.records import Completion, Judgement, Prompt, Rollout, StepUsage, Tool, TopK, Usage, Verdict, is_utf8

ACCEPTED = "rollouts.parquet"
REJECTED = "rejected.parquet"

SCHEMA = pa.schema(
    [
        pa.field("rollout_id", pa.string(), nullable=False),
        pa.field("index", pa.int32(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("slice", pa.string(), nullable=False),
        pa.field("messages", pa.string(), nullable=False),  # JSON, as are tools and reference
        pa.field("tools", pa.string(), nullable=False),
        pa.field("reference", pa.string()),  # null where nobody knows the right calls
        pa.field("text", pa.string(), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("token_ids_sha256", pa.string(), nullable=False),  # of the rollout's id and its token ids
        pa.field("teacher_k", pa.int32(), nullable=False),  # 0 where the row has no teacher log-probabilities
        pa.field("teacher_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("teacher_logprobs", pa.list_(pa.float16()), nullable=False),
        pa.field("teacher_tail_mass", pa.list_(pa.float32()), nullable=False),  # (T,) probability of all tokens not kept
        pa.field("calls", pa.int32(), nullable=False),
        pa.field("prompt_tokens", pa.int64(), nullable=False),
        pa.field("cached_tokens", pa.int64(), nullable=False),
        pa.field("completion_tokens", pa.int64(), nullable=False),
        pa.field("accepted", pa.bool_(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("evidence", pa.string(), nullable=False),
        pa.field("judgement", pa.string()),  # JSON; null where no model judged
        pa.field("seconds", pa.float32(), nullable=False),
        pa.field("engine_seconds", pa.float32(), nullable=False),
        pa.field("student_logprob", pa.float32()),  # null where no student scored it
        pa.field("steps", pa.string(), nullable=False),  # JSON: what each pipeline step took
    ]
)

_TEACHER = ("teacher_ids", "teacher_logprobs")
_TOP_K = (*_TEACHER, "teacher_tail_mass")
_ROWS_AT_A_TIME = 256
_STORED: dict[str, Any] = {
    "compression": "zstd",
    # a top-k id is hardly ever in the next row, so a dictionary costs more than it saves; zstd finds more byte by byte
    "use_dictionary": [name for name in SCHEMA.names if name not in _TEACHER],
    "column_encoding": {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in _TEACHER},
}


def read_rollouts(folder: Path, *, top_k: bool = True) -> list[Rollout]:
    """The accepted rollouts of an artifact, in prompt order.

    Args:
        top_k: whether to read the teacher's log-probabilities, which are most of a row.

    Raises:
        MissingInput: there is no such table.
        CorruptArtifact: it cannot be read, or a row's teacher log-probabilities are not those of its tokens.
    """
    return from_table(read_table(folder / ACCEPTED, [] if top_k else _TOP_K), str(folder / ACCEPTED))


def iter_rollouts(folder: Path, *, top_k: bool = True) -> Iterator[Rollout]:
    """The same rollouts, of which only some hundreds are in memory at a time; raises as `read_rollouts`, once it comes there."""
    path = folder / ACCEPTED
    with _readable(path), pq.ParquetFile(path) as file:
        _check_columns(file.schema_arrow, path)
        for batch in file.iter_batches(_ROWS_AT_A_TIME, columns=_columns(file.schema_arrow, [] if top_k else _TOP_K)):
            yield from from_table(pa.Table.from_batches([batch]), str(path))


def read_rejected(folder: Path) -> list[Rollout]:
    """The rejected rollouts of an artifact, reason and evidence in their verdict; raises as `read_rollouts`."""
    return from_table(read_table(folder / REJECTED), str(folder / REJECTED))


def write_rollouts(path: Path, rollouts: Iterable[Rollout]) -> int:
    """One Parquet file (zstd) of rollouts; log-probabilities as float16, within 0.01 nats down to -20.

    The teacher's top 100 take at most 450 bytes a token, even with ids drawn at random from a vocabulary of 152k.

    Args:
        rollouts: taken as they are written, some hundreds at a time.

    Returns:
        How many there were.

    Raises:
        CorruptArtifact: a rollout's teacher log-probabilities do not fit its tokens.
    """
    rows, written = iter(rollouts), 0
    with TableWriter(path) as table:
        while part := list(islice(rows, _ROWS_AT_A_TIME)):
            table.write(part)
            written += len(part)
    return written


class TableWriter:
    """A Parquet file of rollouts as `write_rollouts` makes it, written part by part; a context manager, which closes it."""

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetWriter(path, SCHEMA, **_STORED)

    def write(self, rollouts: Sequence[Rollout]) -> None:
        """Add rows; raises as `write_rollouts`."""
        if rollouts:
            self._file.write_table(to_table(rollouts))

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def read_table(path: Path, without: Collection[str] = ()) -> pa.Table:
    """A rollout table as it is stored, without some of its columns.

    Raises:
        MissingInput: there is no such file.
        CorruptArtifact: it is cut short, no Parquet, or has other columns.
    """
    with _readable(path), pq.ParquetFile(path) as file:
        _check_columns(file.schema_arrow, path)
        return file.read(_columns(file.schema_arrow, without))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """What reading a file may raise, in our words."""
    try:
        yield
    except FileNotFoundError:
        raise MissingInput(f"{path}: no such rollout table; run jobs/rollout.py") from None
    except (pa.ArrowException, OSError) as error:
        raise CorruptArtifact(f"{path} cannot be read as Parquet: {error}; make the rollouts again") from None


def _columns(schema: pa.Schema, without: Collection[str]) -> list[str]:
    return [name for name in schema.names if name not in without]


def _check_columns(schema: pa.Schema, path: Path) -> None:
    wrong = [field.name for field in SCHEMA if field.name not in schema.names or schema.field(field.name).type != field.type]
    if wrong:
        raise CorruptArtifact(f"{path} is no rollout table of this version: columns missing or of another type: {', '.join(wrong)}")


def to_table(rollouts: Sequence[Rollout]) -> pa.Table:
    """Rollouts as an Arrow table; raises as `write_rollouts`."""
    rows = [_row(rollout) for rollout in rollouts]
    return pa.table({field.name: pa.array([row[field.name] for row in rows], field.type) for field in SCHEMA}, schema=SCHEMA)


def from_table(table: pa.Table, source: str) -> list[Rollout]:
    """The rollouts of an Arrow table, without a top-k where it has no such columns; `source` names it in the error.

    Raises:
        CorruptArtifact: a row's token ids have another hash, or its teacher log-probabilities do not fit them.
    """
    plain = table.select([name for name in table.column_names if name not in _TOP_K]).to_pylist()
    kept = {name: _lists(table.column(name)) for name in _TEACHER if name in table.column_names}
    try:
        return [_rollout(row, *(kept[name][at] for name in _TEACHER if kept)) for at, row in enumerate(plain)]
    except CorruptArtifact as error:
        raise CorruptArtifact(f"{source}: {error}") from None
    except ValueError as error:  # JSON, or a record that refuses a value
        raise CorruptArtifact(f"{source}: a row holds what this version cannot read: {error}") from None


def _row(rollout: Rollout) -> dict[str, Any]:
    completion, prompt, verdict, usage = rollout.completion, rollout.prompt, rollout.verdict, rollout.completion.usage
    ids, logprobs, tail_mass = _teacher_arrays(rollout)
    return {
        "rollout_id": rollout.rollout_id,
        "index": rollout.index,
        "prompt_id": prompt.id,
        "slice": prompt.slice,
        "messages": _json(prompt.messages),
        "tools": _json(rollout.tools),
        "reference": None if prompt.reference is None else _json([call.model_dump() for call in prompt.reference]),
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "token_ids": completion.token_ids,
        "token_ids_sha256": _token_hash(rollout.rollout_id, completion.token_ids),
        "teacher_k": ids.shape[1],
        "teacher_ids": ids.ravel(),
        "teacher_logprobs": logprobs.ravel().astype(np.float16),
        "teacher_tail_mass": tail_mass,
        "calls": usage.calls,
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "completion_tokens": usage.completion_tokens,
        "accepted": verdict.accepted,
        "score": verdict.score,
        "reason": verdict.reason,
        "evidence": verdict.evidence,
        "judgement": None if verdict.judgement is None else _json(verdict.judgement.model_dump()),
        "seconds": rollout.seconds,
        "engine_seconds": rollout.engine_seconds,
        "student_logprob": rollout.student_logprob,
        "steps": _json({name: step.model_dump() for name, step in rollout.steps.items()}),
    }


def _teacher_arrays(rollout: Rollout) -> tuple[Any, Any, Any]:
    """int32 (T, K) ids, float32 (T, K) logprobs, float32 (T,) tail mass; T = K = 0 without them."""
    top_k = rollout.completion.top_k
    if top_k is None:
        return np.zeros((0, 0), np.int32), np.zeros((0, 0), np.float32), np.zeros(0, np.float32)
    _check_fit(rollout.rollout_id, len(rollout.completion.token_ids), len(top_k.ids))
    try:
        ids, logprobs = np.array(top_k.ids, np.int32), np.array(top_k.logprobs, np.float32)
    except ValueError:
        raise CorruptArtifact(f"rollout {rollout.rollout_id}: not the same number of teacher tokens at every position") from None
    if ids.ndim != 2 or ids.shape != logprobs.shape:
        raise CorruptArtifact(f"rollout {rollout.rollout_id}: teacher ids {ids.shape} for teacher logprobs {logprobs.shape}")
    return ids, logprobs, np.clip(1 - np.exp(logprobs.astype(np.float64)).sum(axis=1), 0, 1).astype(np.float32)


def _rollout(row: dict[str, Any], *teacher: Any) -> Rollout:
    """A row as a record; `teacher` are its ids and log-probabilities, flat, or nothing."""
    name, token_ids = row["rollout_id"], row["token_ids"]
    if row["token_ids_sha256"] != _token_hash(name, token_ids):
        raise CorruptArtifact(f"rollout {name}: its token ids have another sha256 than when they were written; make the rollouts again")
    reference = row["reference"]
    prompt = {"id": row["prompt_id"], "messages": json.loads(row["messages"]), "slice": row["slice"]}
    return Rollout(
        rollout_id=name,
        index=row["index"],
        prompt=Prompt.model_validate(prompt | {"reference": None if reference is None else json.loads(reference)}),
        tools=_tools(row["tools"]),
        completion=Completion(
            text=row["text"],
            token_ids=token_ids,
            top_k=_read_top_k(name, len(token_ids), row["teacher_k"], *teacher) if teacher else None,
            finish_reason=row["finish_reason"],
            usage=Usage(**{key: row[key] for key in ("calls", "prompt_tokens", "cached_tokens", "completion_tokens")}),
        ),
        verdict=_verdict(row),
        seconds=row["seconds"],
        engine_seconds=row["engine_seconds"],
        student_logprob=row["student_logprob"],
        steps=read_steps(row["steps"]),
    )


@lru_cache(maxsize=64)
def _tools(value: str) -> list[Tool]:
    """Those of a task are alike in every row, and are one object then."""
    tools: list[Tool] = json.loads(value)
    return tools


def read_steps(value: str) -> dict[str, StepUsage]:
    """What each pipeline step of a row took, from its column `steps`."""
    return {name: StepUsage.model_validate(step) for name, step in json.loads(value).items()}


def _verdict(row: dict[str, Any]) -> Verdict:
    judgement = None if row["judgement"] is None else Judgement.model_validate(json.loads(row["judgement"]))
    return Verdict(accepted=row["accepted"], score=row["score"], reason=row["reason"], evidence=row["evidence"], judgement=judgement)


def _json(value: Any) -> str:
    """JSON as readable as Parquet takes it: a lone surrogate, which is no UTF-8, is escaped, and comes back as it was."""
    text = json.dumps(value, ensure_ascii=False)
    return text if is_utf8(text) else json.dumps(value)


def _read_top_k(name: str, num_tokens: int, k: int, ids: Any, logprobs: Any) -> TopK | None:
    if k == 0:
        return None
    for values in (ids, logprobs):
        if len(values) % k:
            raise CorruptArtifact(f"rollout {name}: {len(values)} teacher values are not {k} a position")
        _check_fit(name, num_tokens, len(values) // k)
    return TopK(ids=ids.reshape(-1, k).tolist(), logprobs=logprobs.astype(np.float32).reshape(-1, k).tolist())


def _check_fit(name: str, num_tokens: int, num_positions: int) -> None:
    if num_tokens != num_positions:
        raise CorruptArtifact(
            f"rollout {name}: {num_positions} teacher logprobs for {num_tokens} completion tokens; was the same tokenizer used?"
        )


def _token_hash(rollout_id: str, token_ids: Sequence[int]) -> str:
    return hashlib.sha256(rollout_id.encode() + b"\0" + np.array(token_ids, "<i4").tobytes()).hexdigest()


def _lists(column: pa.ChunkedArray) -> list[Any]:
    """One NumPy array a row of a list column."""
    rows = []
    for chunk in column.chunks:
        values, offsets = chunk.values.to_numpy(zero_copy_only=False), chunk.offsets.to_numpy()
        rows += [values[start:end] for start, end in pairwise(offsets)]
    return rows
