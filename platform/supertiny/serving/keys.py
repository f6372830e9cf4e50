"""API keys: who may ask, how often, and how much at a time.

    python -m supertiny.serving.keys alice >> keys.toml      # prints the key once, on stderr; the file gets its hash alone
    python -m supertiny.serving.keys ops --admin >> keys.toml

A key is 256 random bits, so a plain SHA-256 of it can be neither guessed nor looked up, and checking one costs microseconds. A slow
hash such as scrypt is for passwords, which people choose; here it would cost every request 50 ms.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import os
import re
import secrets
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import ceil
from pathlib import Path

from pydantic import Field

from supertiny.config import Config, validate
from supertiny.errors import ConfigError, MissingInput

_PREFIX = "st-"


class KeyConfig(Config):
    """One key, by its hash."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the key, hexadecimal."""
    requests_per_minute: int = Field(600, ge=1)
    """Over all routers; as many may come at once, then they come as fast as this."""
    concurrency: int = Field(32, ge=1)
    """Requests in flight, over all routers."""
    admin: bool = False
    """An admin key sees `/admin/status`, and cannot ask the models."""


class KeysConfig(Config):
    """The content of a file of keys."""

    keys: dict[str, KeyConfig] = Field(min_length=1)
    """By name; the name is what a refusal says, and what metrics count it under."""


def read_keys(source: str) -> dict[str, KeyConfig]:
    """The keys of a `.toml` file, or of an environment variable `env:NAME` that holds such a file's text.

    Raises:
        MissingInput: there is no such file, or the variable is not set.
        ConfigError: it is not TOML, or a key of it is wrong.
    """
    try:
        return validate(KeysConfig, {"keys": tomllib.loads(_text(source))}, f"api_keys {source}").keys
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"api_keys {source} is not TOML: {error}") from None


def hash_of(key: str) -> str:
    """What a file of keys holds in place of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


class Refusal(Exception):
    """Why a caller is not let in.

    Args:
        status: 401 for no or a wrong key, 403 for the wrong kind of key, 429 for too much.
        retry_after: seconds until another try may do, for 429.
        key: name of the key; empty where there is none.
    """

    def __init__(self, status: int, message: str, retry_after: int | None = None, key: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.key = key


class Guard:
    """Lets callers in by their key; without keys, everyone.

    Args:
        keys: by name; None for an open door.
        routers: how many share the limits; each keeps its part, rounded up.
        clock: seconds that never go back.
    """

    def __init__(self, keys: Mapping[str, KeyConfig] | None, routers: int, clock: Callable[[], float]) -> None:
        self._visitors = {name: _Visitor(name, key, routers, clock) for name, key in keys.items()} if keys is not None else None

    @contextmanager
    def admit(self, authorization: str | None) -> Iterator[None]:
        """The time of one request to the models.

        Raises:
            Refusal: no, a wrong or an admin key, or more than the key may.
        """
        if self._visitors is None:
            yield
            return
        visitor = self._known(authorization)
        if visitor.key.admin:
            raise Refusal(403, "an admin key cannot ask the models", key=visitor.name)
        with visitor.turn():
            yield

    def check(self, authorization: str | None, *, admin: bool = False) -> None:
        """Raise Refusal where the key is not known, or not an admin's where one is needed. Without keys nobody is an admin."""
        if self._visitors is None:
            if admin:
                raise Refusal(403, "there is no admin key; set api_keys")
            return
        visitor = self._known(authorization)
        if visitor.key.admin < admin:
            raise Refusal(403, "this needs an admin key", key=visitor.name)

    def _known(self, authorization: str | None) -> _Visitor:
        scheme, _, key = (authorization or "").partition(" ")
        digest = hash_of(key.strip())
        found = None
        for visitor in (self._visitors or {}).values():  # all of them, so that the time says nothing
            if hmac.compare_digest(visitor.key.sha256, digest):
                found = visitor
        if found is None or scheme.lower() != "bearer":
            raise Refusal(401, "no such API key; send one as `Authorization: Bearer <key>`")
        return found


class _Visitor:
    """What one key has in flight, and how many requests it may still make (a token bucket)."""

    def __init__(self, name: str, key: KeyConfig, routers: int, clock: Callable[[], float]) -> None:
        self.name, self.key = name, key
        self._concurrency = ceil(key.concurrency / routers)
        self._per_second = key.requests_per_minute / routers / 60
        self._most = max(key.requests_per_minute / routers, 1.0)
        self._left, self._at, self._clock = self._most, clock(), clock
        self._in_flight = 0

    @contextmanager
    def turn(self) -> Iterator[None]:
        """One request; raises Refusal where it is one too many."""
        now = self._clock()
        self._left, self._at = min(self._most, self._left + (now - self._at) * self._per_second), now
        if self._in_flight >= self._concurrency:
            raise Refusal(429, f"the key {self.name} has {self._in_flight} requests in flight, the most it may", 1, self.name)
        if self._left < 1:
            seconds = ceil((1 - self._left) / self._per_second)
            raise Refusal(429, f"the key {self.name} made its requests of a minute", seconds, self.name)
        self._left -= 1
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1


def _text(source: str) -> str:
    if source.startswith("env:"):
        name = source.removeprefix("env:")
        if name not in os.environ:
            raise MissingInput(f"api_keys {source}: the variable {name} is not set where the router runs")
        return os.environ[name]
    try:
        return Path(source).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise MissingInput(f"api_keys {source}: {error.strerror}, where the router runs") from None


def main(argv: Sequence[str] | None = None) -> None:
    """Make a key of the name that the command line gives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("name", help="whose key it is: letters, digits, _ and -")
    parser.add_argument("--admin", action="store_true", help="sees /admin/status, and cannot ask the models")
    flags = parser.parse_args(argv)
    if not re.fullmatch(r"[A-Za-z0-9_-]+", flags.name):
        parser.error(f"{flags.name!r}: a name has letters, digits, _ and -, so that it can head its part of the file")
    key = _PREFIX + secrets.token_urlsafe(32)
    print(f"the key, shown this once: {key}", file=sys.stderr)
    print(f'[{flags.name}]\nsha256 = "{hash_of(key)}"\n' + ("admin = true\n" if flags.admin else ""))


if __name__ == "__main__":
    main()
