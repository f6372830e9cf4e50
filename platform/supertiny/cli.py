"""The one way a job starts: three flags, a validated config, an exit status.

Exit status: 0 done, 2 the config is wrong, 1 the run failed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

from supertiny.config import Config, JobConfig, load
from supertiny.errors import ConfigError, SupertinyError
from supertiny.revision import code_hash, image_revision, other_code_beside

C = TypeVar("C", bound=Config)
log = logging.getLogger("supertiny")


def run_job(
    cls: type[C],
    main: Callable[[C], None],
    *,
    default: str | None = None,
    estimate: Callable[[C], str] | None = None,
    argv: Sequence[str] | None = None,
) -> int:
    """Parse, validate and print the config (all of it with `--dry-run`, else what is not default), then run `main` on it.

    Args:
        default: config file used where `--config` is not given, relative to the checkout.
        estimate: what `--dry-run` logs besides: what the job will take. It may raise what the job would, and ends it alike.

    Returns:
        The process's exit status.
    """
    job = sys.modules[main.__module__]
    parser = argparse.ArgumentParser(description=job.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--config", default=_checkout(job.__file__) / default if default else None, help="TOML file")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override one setting; repeatable")
    parser.add_argument(
        "--dry-run", action="store_true", help="validate, print the resolved config and an estimate where there is one, and stop"
    )
    flags = parser.parse_args(argv)
    configure_logging()
    try:
        config = load(cls, flags.config, flags.set)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(config.model_dump_json(indent=2, exclude_defaults=not flags.dry_run))
    if other := other_code_beside(_checkout(job.__file__)):
        log.warning("%s", other)
    if isinstance(config, JobConfig):
        outputs = Path(config.run_root).expanduser()
        image = f", image of revision {image_revision()}" if image_revision() else ""
        log.info("supertiny %s, code %s, revision %s%s; outputs in %s", package_version(), code_hash(), config.git_revision, image, outputs)
    if not flags.dry_run:
        return exit_status(lambda: main(config))
    return exit_status(lambda: log.info("%s", estimate(config))) if estimate is not None else 0


class JsonLines(logging.Formatter):
    """A record as a JSON object in a line, for what collects logs."""

    def format(self, record: logging.LogRecord) -> str:
        """Time (UTC), level, logger, message, and the exception where there is one."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        said = {"time": at, "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        return json.dumps(said, ensure_ascii=False)


def configure_logging() -> None:
    """One line a record on standard error, at the level that SUPERTINY_LOG names (INFO by default); JSON with SUPERTINY_LOG_FORMAT=json."""
    handler = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s %(levelname).1s %(name)s: %(message)s", datefmt="%H:%M:%S")
    handler.setFormatter(JsonLines() if os.environ.get("SUPERTINY_LOG_FORMAT") == "json" else text)
    logging.basicConfig(level=os.environ.get("SUPERTINY_LOG", "INFO").upper(), handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line a request


def package_version() -> str:
    """The installed package's version, or `source` where only the checkout is on the path."""
    try:
        return version("supertiny")
    except PackageNotFoundError:
        return "source"


def exit_status(run: Callable[[], int | None]) -> int:
    """What a command ends with: its own status or 0; 2 where the config is wrong and 1 where the work failed, said in a line."""
    try:
        return run() or 0
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SupertinyError as error:
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        return 1


def _checkout(job_file: str | None) -> Path:
    return Path(job_file or ".").resolve().parent.parent
