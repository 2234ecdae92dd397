"""Detection of a pooler in transaction mode, which gives each transaction another server connection and loses session
state."""

from __future__ import annotations

import sys
from typing import Any

import structlog
from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, connections

log = structlog.get_logger(__name__)

ROUNDS = 3
REFUSAL = (
    "the database is behind a pooler in transaction mode: use a session pool or the server itself, or name the server in "
    "BYTEOR_CLOUD_DATABASE_DIRECT_URL as well"
)


def plain_parameters(alias: str = DEFAULT_DB_ALIAS) -> dict[str, Any]:
    """Return psycopg's connection parameters as Django uses them, without prepared statements."""
    own = (
        "cursor_factory",
        "context",
        "prepare_threshold",
        "server_side_binding",
        "isolation_level",
        "assume_role",
        "pool",
    )
    given = connections[alias].get_connection_params()
    return {name: value for name, value in given.items() if name not in own} | {"prepare_threshold": None}


def is_transaction_pooler() -> bool:
    """Return whether two transactions of one connection may use two server connections, or the reverse. False on
    SQLite.

    Raises psycopg.OperationalError if the database is unreachable.
    """
    if connections[DEFAULT_DB_ALIAS].vendor != "postgresql":
        return False
    import psycopg

    def backend(connection: psycopg.Connection[Any]) -> int:
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
        return int(row[0]) if row else 0

    first, second = plain_parameters(), plain_parameters()
    with psycopg.connect(**first, autocommit=True) as one, psycopg.connect(**second, autocommit=True) as two:
        mine: set[int] = set()
        theirs: set[int] = set()
        for _ in range(ROUNDS):
            mine.add(backend(one))
            theirs.add(backend(two))
            if len(mine) > 1 or mine & theirs:
                return True  # before anything waits for a slot in a pool of one
            with two.transaction():
                theirs.add(backend(two))
                mine.add(backend(one))
        return len(mine) > 1 or len(theirs) > 1 or bool(mine & theirs)


def refuse_pooler() -> None:
    """Print one line and exit with status 2 if a transaction pooler is configured without the settings that allow it.

    An unreachable database is ignored here; the readiness check repeats the test.
    """
    if settings.BYTEOR_DATABASE_DIRECT_URL:
        return
    import psycopg

    try:
        pooled = is_transaction_pooler()
    except psycopg.Error as error:
        log.warning("could not check whether the database is behind a pooler", reason=type(error).__name__)
        return
    if pooled:
        sys.stderr.write(f"byteor: {REFUSAL}\n")
        sys.exit(2)
