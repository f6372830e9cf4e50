"""Training checkpoints: folders `step-000050` whose `checkpoint.json`, written last, names every file with its sha256."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from pydantic import Field, ValidationError

from supertiny.artifacts import FileEntry, check_file, file_entries, write_atomically
from supertiny.errors import CorruptArtifact, SupertinyError
from supertiny.records import Record

CHECKPOINT = "checkpoint.json"
log = logging.getLogger(__name__)


class CheckpointNote(Record):
    """Description of a checkpoint."""

    step: int = Field(ge=1)
    """Steps done when it was written."""
    num_workers: int = Field(ge=1)
    """Workers that wrote it."""
    files: dict[str, FileEntry]


def checkpoint_folder(root: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return root / f"step-{step:06d}"


def step_of(folder: Path) -> int:
    """The step that a checkpoint's name tells."""
    return int(folder.name.removeprefix("step-"))


def workers_of(folder: Path) -> int:
    """How many workers wrote a sealed checkpoint."""
    return CheckpointNote.model_validate_json((folder / CHECKPOINT).read_bytes()).num_workers


def take_name(draft: Path, folder: Path) -> None:
    """Rename a checkpoint that is written; what an earlier attempt left under the name, damaged or never sealed, gives way."""
    shutil.rmtree(folder, ignore_errors=True)
    draft.replace(folder)


def seal(folder: Path, step: int, num_workers: int) -> None:
    """Declare a checkpoint finished: all its files are there and hashed."""
    files = {name: entry for name, entry in file_entries(folder).items() if name != CHECKPOINT}
    write_atomically(folder / CHECKPOINT, CheckpointNote(step=step, num_workers=num_workers, files=files).model_dump_json(indent=2))


def check(folder: Path) -> int:
    """The step of a sealed checkpoint, every file compared with its hash.

    Raises:
        CorruptArtifact: the description cannot be read, or a file is missing, cut short or altered.
    """
    try:
        note = CheckpointNote.model_validate_json((folder / CHECKPOINT).read_bytes())
    except ValidationError as error:
        raise CorruptArtifact(f"{folder / CHECKPOINT} cannot be read: {error.errors()[0]['msg']}") from None
    for name, entry in note.files.items():
        check_file(folder / name, entry)
    return note.step


def newest_good(root: Path) -> Path | None:
    """The last sealed checkpoint whose files are as they were written; None where none was ever sealed.

    A damaged one is passed over for the one before it, with a warning.

    Raises:
        CorruptArtifact: there are checkpoints, and all are damaged.
    """
    damage = None
    for folder in sorted((note.parent for note in root.glob(f"step-*/{CHECKPOINT}")), key=step_of, reverse=True):
        try:
            check(folder)
        except CorruptArtifact as error:
            log.warning("DAMAGED CHECKPOINT, going back to the one before it: %s", error)
            damage = error
        else:
            return folder
    if damage:
        raise CorruptArtifact(f"every checkpoint is damaged; delete {root} to train from the start ({damage})")
    return None


def agree_on_newest(root: Path) -> Path | None:
    """`newest_good`, looked up by worker 0 and the same for every worker of the process group; all raise what it raises."""
    import torch.distributed as dist

    choice: list[Path | SupertinyError | None] = [None]
    if dist.get_rank() == 0:
        try:
            choice = [newest_good(root)]
        except SupertinyError as error:
            choice = [error]
    dist.broadcast_object_list(choice)
    if isinstance(choice[0], SupertinyError):
        raise choice[0]
    return choice[0]
