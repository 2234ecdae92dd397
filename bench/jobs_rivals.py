"""What ours is measured against, each as worker processes of its own: `python -m bench.jobs_rivals NAME URL`.

`bare` is the least that a queue in PostgreSQL can be: LISTEN, an UPDATE of one row by SKIP LOCKED, the work, an UPDATE.
`bare_sqlite` is the same on a file: an immediate transaction each way, `data_version` looked at every 10 ms.
`procrastinate` runs as its documentation recommends: an async task, its own connector and schema, LISTEN/NOTIFY on.
"""

from __future__ import annotations

import sqlite3
import sys
import time
import uuid
from collections.abc import Sequence
from typing import Any

import procrastinate
import psycopg

from bench.jobs_effect import note_effect

BARE_SCHEMA = (
    "CREATE TABLE bare_jobs (id bigserial PRIMARY KEY, key uuid NOT NULL, status text NOT NULL DEFAULT 'queued')",
    "CREATE INDEX bare_due ON bare_jobs (id) WHERE status = 'queued'",
)
SQLITE_SCHEMA = (
    "PRAGMA journal_mode=WAL",
    "CREATE TABLE bare_jobs (id INTEGER PRIMARY KEY, key TEXT NOT NULL, status TEXT NOT NULL DEFAULT 'queued')",
    "CREATE INDEX bare_due ON bare_jobs (id) WHERE status = 'queued'",
)


def bare(url: str) -> None:
    """One worker process over raw psycopg."""
    with psycopg.connect(url, autocommit=True) as work, psycopg.connect(url, autocommit=True) as ears:
        ears.execute("LISTEN bare")
        while True:
            row = work.execute(
                "UPDATE bare_jobs SET status = 'running' WHERE id = (SELECT id FROM bare_jobs WHERE status = 'queued' "
                "ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING id, key"
            ).fetchone()
            if row is None:
                for _ in ears.notifies(timeout=1.0, stop_after=1):
                    pass
                continue
            note_effect(row[1])
            work.execute("UPDATE bare_jobs SET status = 'done' WHERE id = %s", [row[0]])


def bare_put(url: str, keys: Sequence[uuid.UUID]) -> None:
    """Queue for `bare`, in one transaction."""
    with psycopg.connect(url) as raw, raw.cursor() as cursor:
        cursor.executemany("INSERT INTO bare_jobs (key) VALUES (%s)", [[key] for key in keys])
        cursor.execute("NOTIFY bare")


def sqlite_connection(path: str) -> sqlite3.Connection:
    """A connection as the product opens its own."""
    raw = sqlite3.connect(path, timeout=20, isolation_level=None)
    raw.execute("PRAGMA synchronous=NORMAL")
    return raw


def bare_sqlite(path: str) -> None:
    """One worker process over sqlite3."""
    raw = sqlite_connection(path)

    def in_transaction(statement: str, *values: Any) -> list[Any]:
        raw.execute("BEGIN IMMEDIATE")
        rows = raw.execute(statement, values).fetchall()
        raw.execute("COMMIT")
        return rows

    seen = None
    while True:
        rows = in_transaction(
            "UPDATE bare_jobs SET status = 'running' WHERE id = (SELECT id FROM bare_jobs WHERE status = 'queued' "
            "ORDER BY id LIMIT 1) RETURNING id, key"
        )
        if not rows:
            while (now := raw.execute("PRAGMA data_version").fetchone()) == seen:
                time.sleep(0.01)
            seen = now
            continue
        note_effect(uuid.UUID(rows[0][1]))
        in_transaction("UPDATE bare_jobs SET status = 'done' WHERE id = ?", rows[0][0])


def procrastinate_app(url: str) -> procrastinate.App:
    """The application that both sides of procrastinate share."""
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url))

    @app.task(name="noop")
    async def noop(key: str) -> None:
        note_effect(uuid.UUID(key))

    return app


def procrastinate_worker(url: str) -> None:
    """One worker process of procrastinate."""
    procrastinate_app(url).run_worker(install_signal_handlers=False)


WORKERS = {"bare": bare, "bare_sqlite": bare_sqlite, "procrastinate": procrastinate_worker}

if __name__ == "__main__":
    from apps.core.processes import die_with_parent

    die_with_parent()
    WORKERS[sys.argv[1]](sys.argv[2])
