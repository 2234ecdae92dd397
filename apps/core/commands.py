"""Error messages of commands when the database is unavailable or not migrated."""

from __future__ import annotations

from django.db import Error

from apps.core.db import DATABASE_AWAY

_NOT_MIGRATED = frozenset({"42P01", "42703", "3F000"})
"""PostgreSQL's error codes for a missing table, column or schema."""


def database_line(error: Error) -> str | None:
    """Describe a database error in one line for an operator. Returns None for errors whose traceback is needed."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    missing = first.startswith(("no such table", "no such column"))
    if missing or getattr(error.__cause__, "sqlstate", None) in _NOT_MIGRATED:
        return "the database is not migrated: run manage.py migrate"
    if isinstance(error, DATABASE_AWAY):
        return f"the database is unavailable: {first[:300]}"
    return None
