"""Typed configs: TOML in, one frozen pydantic model a stage, errors that name the key.

Inside a run, artifacts go by name: a stage's `name` is the folder under `run_root` that it publishes, and an input such as
`student = "distill"` is the artifact of that name. `supertiny.artifacts.resolve` turns either into a path.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from supertiny.errors import ConfigError


class Config(BaseModel):
    """A group of settings; unknown keys are refused and values never change after loading."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


C = TypeVar("C", bound=Config)


class TaskConfig(Config):
    """Which task is learnt."""

    path: str = "supertiny.tasks.assistant.task:AssistantTask"
    """Import path `package.module:Class` of the task."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the task's constructor, which validates them."""


class PlaceConfig(Config):
    """Where a stage runs whose work is one process: as a Ray task, on one node."""

    image: str | None = Field(None, min_length=1)
    """Image that the task's process runs in, with supertiny and this Ray in it (`image_uri` of Ray's `runtime_env`): Ray starts it with
    podman, which has to be on that node and to mount `run_root`. None takes what the node itself runs; `labels` may choose its group."""
    num_cpus: float = Field(1, gt=0)
    """Logical CPUs of one node; Ray gives the process as many OpenMP threads."""
    num_gpus: float = Field(0, ge=0)
    """GPUs of that node."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Nodes that it may be on: those with all of these labels (Ray's `label_selector`)."""


class JobConfig(Config):
    """What every job takes: where its artifacts lie and which task it serves."""

    run_root: str = "~/supertiny/runs/demo"
    """Folder of this run's artifacts; artifact names are looked up in it."""
    git_revision: str = "unknown"
    """Revision of the code, for the manifests; a submitted job has no `.git` to ask."""
    task: TaskConfig = TaskConfig()
    """The task."""


class StageConfig(JobConfig):
    """A job that publishes one artifact."""

    name: str
    """Name of the artifact that this stage publishes under `run_root`."""

    def settings(self) -> dict[str, Any]:
        """The fields that decide the result, as JSON values: what an artifact's key is made of."""
        return self.model_dump(mode="json", exclude={"run_root", "git_revision"})


class PlacedConfig(StageConfig):
    """A stage whose work is one process, which may run on another node than the driver."""

    place: PlaceConfig | None = None
    """Where; None is the driver's own process."""

    def settings(self) -> dict[str, Any]:
        """As of every stage, without its place, which changes nothing of what it makes."""
        return {key: value for key, value in super().settings().items() if key != "place"}


def load(cls: type[C], path: str | Path | None, overrides: Sequence[str] = ()) -> C:
    """A validated config from a TOML file and `section.key=value` overrides (values are TOML, else plain text).

    A section of the file may be another file: `rollout = "rollout.toml"` reads the one beside it. A config that a job has
    written down, a `.json` file, is read too.

    Raises:
        ConfigError: the file is missing or not TOML, or a key or value is wrong; every wrong key is named.
    """
    values = _read(Path(path)) if path else {}
    for override in overrides:
        _apply(values, override)
    return validate(cls, values, str(path) if path else "the command line")


def validate(cls: type[C], values: Mapping[str, Any], source: str) -> C:
    """A config from plain values; `source` names their origin in the error."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(_explain(cls, detail) for detail in error.errors())
        raise ConfigError(f"{source} is not a valid {cls.__name__}: {problems}") from None


def check_kinds(cls: type[Config], values: Mapping[str, Any], above: str = "") -> None:
    """Look at values before a validator does that runs ahead of pydantic, which would end in a traceback.

    Raises:
        ValueError: a section is no table, a name no text or a list of names none; says where it is, `above` included.
    """
    for name, field in cls.model_fields.items():
        kind, value = field.annotation, values.get(name)
        section = _section(kind)
        if section is not None and isinstance(value, Mapping):
            check_kinds(section, value, f"{above}{name}.")
        elif value is not None and (expected := _unlike(value, kind, section)):
            raise ValueError(f"{above}{name}: expected {expected}, got {value!r}")


def _unlike(value: Any, kind: Any, section: type[Config] | None) -> str:
    """What was expected instead of a value; empty where it is of that kind, or of one that only pydantic knows."""
    if section is not None:
        return "" if isinstance(value, section) else "a table of settings"
    if _is_text(kind):
        return "" if isinstance(value, str) else "text"
    names = get_origin(kind) is tuple and _is_text(get_args(kind)[0])
    listed = isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)
    return "a list of names" if names and not listed else ""


def _is_text(kind: Any) -> bool:
    return kind is str or (get_origin(kind) is Literal and all(isinstance(each, str) for each in get_args(kind)))


def _section(kind: Any) -> type[Config] | None:
    """The config that a field holds, or may hold."""
    others = get_args(kind) if get_origin(kind) in (Union, UnionType) else ()
    return next((each for each in (kind, *others) if hasattr(each, "model_fields")), None)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        values: dict[str, Any] = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file (looked from {Path.cwd()})") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not {'JSON' if path.suffix == '.json' else 'TOML'}: {error}") from None
    beside = {key: path.parent / value for key, value in values.items() if isinstance(value, str) and value.endswith(".toml")}
    return {**values, **{key: _read(file) for key, file in beside.items()}}


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"--set {override}: expected section.key=value")
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {override}: {section} is a value, not a section")
    try:
        values[last] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        values[last] = text


def _explain(cls: type[Config], detail: ErrorDetails) -> str:
    where = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(detail["loc"][-1]), _keys_at(cls, detail["loc"][:-1]), n=1)
        return f"{where}: no such key" + (f"; did you mean {close[0]}?" if close else "")
    if detail["type"] == "missing":
        return f"{where}: required"
    message = detail["msg"].removeprefix("Value error, ")
    if not where:
        return message
    return f"{where}: {message}, got {detail['input']!r}"


def _keys_at(cls: type[Config], location: tuple[int | str, ...]) -> list[str]:
    """The keys a section takes; `location` is its path from the top."""
    section: Any = cls
    for part in location:
        field = section.model_fields.get(part) if hasattr(section, "model_fields") else None
        if field is None:
            return []
        section = _section(field.annotation)
    return list(section.model_fields) if section is not None else []
