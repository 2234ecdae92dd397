"""A cache in its own SQLite file whose `add` and `incr` are atomic across threads and processes.

django-ratelimit counts with these two methods. Django's database and local-memory caches lose counts under concurrency.
The file is never the main database: a count neither waits for a business transaction nor is rolled back with one.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, value, expires REAL) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS entries_expires ON entries (expires)",
    # of sliding windows (`apps.limits.stores`): times in microseconds
    "CREATE TABLE IF NOT EXISTS slots (key TEXT, until INTEGER, name TEXT, PRIMARY KEY (key, until, name)) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS slots_until ON slots (until)",
)
_PATIENCE = 20.0
_SWEEP_EVERY = 500
_FOREVER = 9e15
_LONGEST_WINDOW = 3600.0

# connections of a parent process: closing them here would release the parent's file locks
_inherited: list[sqlite3.Connection] = []


class _Connections(threading.local):
    """One connection per thread; a process that forked opens its own."""

    pid: int = -1
    connection: sqlite3.Connection | None = None


class SqliteCache(BaseCache):
    """A Django cache backend in one SQLite file.

    `LOCATION` is the path of the file. Values are stored as JSON; integers are stored as integers, so that `incr` can
    add to them in one statement.
    """

    def __init__(self, location: str, params: dict[str, Any]) -> None:
        super().__init__(params)
        self._path = Path(location)
        self._local = _Connections()
        self._writes = 0

    def connection(self) -> sqlite3.Connection:
        """This thread's connection to the file, in autocommit mode."""
        local = self._local
        if local.connection is None or local.pid != os.getpid():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            connection = _open(self._path)
            with contextlib.suppress(OSError):
                self._path.chmod(0o600)
            if local.connection is not None:
                _inherited.append(local.connection)
            local.connection, local.pid = connection, os.getpid()
        return local.connection

    def _run(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        # RETURNING rows must be read to the end for the statement to commit
        return self.connection().execute(statement, values).fetchall()

    def _expires(self, timeout: Any) -> float:
        moment = self.get_backend_timeout(timeout)
        return _FOREVER if moment is None else float(moment)

    def _sweep(self) -> None:
        self._writes += 1
        if self._writes % _SWEEP_EVERY == 0:
            self._run("DELETE FROM entries WHERE expires <= ?", time.time())
            self._run("DELETE FROM slots WHERE until <= ?", int((time.time() - _LONGEST_WINDOW) * 1_000_000))

    def _name(self, key: str, version: int | None) -> str:
        name = self.make_key(key, version=version)
        self.validate_key(name)
        return name

    def add(self, key: str, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        """Store the value unless a live entry exists. Of concurrent calls, exactly one returns True."""
        self._sweep()
        rows = self._run(
            "INSERT INTO entries (key, value, expires) VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE "
            "SET value = excluded.value, expires = excluded.expires WHERE entries.expires <= ? RETURNING 1",
            self._name(key, version),
            _encode(value),
            self._expires(timeout),
            time.time(),
        )
        return bool(rows)

    def get(self, key: str, default: Any = None, version: int | None = None) -> Any:
        """Return the live value, or `default`."""
        rows = self._run(
            "SELECT value FROM entries WHERE key = ? AND expires > ?", self._name(key, version), time.time()
        )
        return _decode(rows[0][0]) if rows else default

    def set(self, key: str, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> None:
        """Store the value, replacing any entry."""
        self._sweep()
        self._run(
            "INSERT INTO entries (key, value, expires) VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE "
            "SET value = excluded.value, expires = excluded.expires",
            self._name(key, version),
            _encode(value),
            self._expires(timeout),
        )

    def touch(self, key: str, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        """Renew the timeout of a live entry. Returns False if there is none."""
        return bool(
            self._run(
                "UPDATE entries SET expires = ? WHERE key = ? AND expires > ? RETURNING 1",
                self._expires(timeout),
                self._name(key, version),
                time.time(),
            )
        )

    def delete(self, key: str, version: int | None = None) -> bool:
        """Delete the entry. Returns False if there is none."""
        return bool(self._run("DELETE FROM entries WHERE key = ? RETURNING 1", self._name(key, version)))

    def incr(self, key: str, delta: int = 1, version: int | None = None) -> int:
        """Add `delta` to a live integer and return the sum, atomically. Raises ValueError if there is no such entry."""
        rows = self._run(
            "UPDATE entries SET value = value + ? WHERE key = ? AND expires > ? AND typeof(value) = 'integer' "
            "RETURNING value",
            delta,
            self._name(key, version),
            time.time(),
        )
        if not rows:
            raise ValueError(f"Key '{key}' not found")
        return int(rows[0][0])

    def clear(self) -> None:
        """Delete every entry."""
        self._run("DELETE FROM entries")
        self._run("DELETE FROM slots")


def _open(path: Path) -> sqlite3.Connection:
    """Open the file and prepare its schema, retrying for up to `_PATIENCE` seconds.

    Switching a new file to WAL mode ignores SQLite's busy timeout, hence the retries.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        connection = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=OFF")
            for statement in _SCHEMA:
                connection.execute(statement)
        except sqlite3.OperationalError:
            connection.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return connection


def _encode(value: Any) -> int | str:
    return value if isinstance(value, int) and not isinstance(value, bool) else json.dumps(value)


def _decode(stored: int | str) -> Any:
    return stored if isinstance(stored, int) else json.loads(stored)
