"""A cache in an SQLite file of its own whose `add` and `incr` are atomic across threads and processes.

django-ratelimit counts with these two; Django's database and local-memory caches lose counts under
concurrency. The file is never the main database, so that counting neither waits for a business transaction
nor is rolled back with one.
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
)
_PATIENCE = 20.0
_SWEEP_EVERY = 500
_FOREVER = 9e15

# connections of a parent process: kept from being closed, which would release the parent's file locks
_inherited: list[sqlite3.Connection] = []


class _Connections(threading.local):
    """One connection per thread; a process that forked opens its own."""

    pid: int = -1
    connection: sqlite3.Connection | None = None


class SqliteCache(BaseCache):
    """`LOCATION` is the path of the file. Values are JSON; integers are kept as such, for `incr`."""

    def __init__(self, location: str, params: dict[str, Any]) -> None:
        super().__init__(params)
        self._path = Path(location)
        self._local = _Connections()
        self._writes = 0

    def _connection(self) -> sqlite3.Connection:
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
        return self._connection().execute(statement, values).fetchall()

    def _expires(self, timeout: Any) -> float:
        moment = self.get_backend_timeout(timeout)
        return _FOREVER if moment is None else float(moment)

    def _sweep(self) -> None:
        self._writes += 1
        if self._writes % _SWEEP_EVERY == 0:
            self._run("DELETE FROM entries WHERE expires <= ?", time.time())

    def _name(self, key: str, version: int | None) -> str:
        name = self.make_key(key, version=version)
        self.validate_key(name)
        return name

    def add(self, key: str, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        """Store unless there is a live entry. Exactly one of many at once is told True."""
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
        """The live value, or `default`."""
        rows = self._run(
            "SELECT value FROM entries WHERE key = ? AND expires > ?", self._name(key, version), time.time()
        )
        return _decode(rows[0][0]) if rows else default

    def set(self, key: str, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> None:
        """Store, replacing what was there."""
        self._sweep()
        self._run(
            "INSERT INTO entries (key, value, expires) VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE "
            "SET value = excluded.value, expires = excluded.expires",
            self._name(key, version),
            _encode(value),
            self._expires(timeout),
        )

    def touch(self, key: str, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        """Give a live entry another life; False when there is none."""
        return bool(
            self._run(
                "UPDATE entries SET expires = ? WHERE key = ? AND expires > ? RETURNING 1",
                self._expires(timeout),
                self._name(key, version),
                time.time(),
            )
        )

    def delete(self, key: str, version: int | None = None) -> bool:
        """Remove; False when there was nothing."""
        return bool(self._run("DELETE FROM entries WHERE key = ? RETURNING 1", self._name(key, version)))

    def incr(self, key: str, delta: int = 1, version: int | None = None) -> int:
        """Add `delta` to a live integer and answer the sum; ValueError when there is none. No count is lost."""
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

    def has_key(self, key: str, version: int | None = None) -> bool:
        """Is there a live entry?"""
        return bool(
            self._run("SELECT 1 FROM entries WHERE key = ? AND expires > ?", self._name(key, version), time.time())
        )

    def clear(self) -> None:
        """Forget everything."""
        self._run("DELETE FROM entries")


def _open(path: Path) -> sqlite3.Connection:
    """A connection to a file that is ready. Turning a new file to WAL does not wait its turn: so this does."""
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
