"""Transactions and row locks that mean the same on SQLite and PostgreSQL."""

from __future__ import annotations

import errno
from typing import TypeVar

from django.db import InterfaceError, OperationalError, connection, models, transaction

atomic = transaction.atomic

# what a database that went away, is full or is overrun raises; close the connection and try again later
DATABASE_AWAY = (OperationalError, InterfaceError)


def is_full(error: BaseException) -> bool:
    """Whether `error` says that no room is left: of the operating system, SQLite or PostgreSQL, itself or as its cause."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if getattr(cause, "sqlstate", None) == "53100" or getattr(cause, "sqlite_errorname", "") == "SQLITE_FULL":
            return True
        cause = cause.__cause__
    return False


def reason(error: BaseException) -> str:
    """`error` in one line for a log: its type and the first line of what it says."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0][:200]}" if said else type(error).__name__


M = TypeVar("M", bound=models.Model)


def lock_row(rows: models.QuerySet[M]) -> M | None:
    """The first row of `rows`, locked until the transaction ends; None when there is none.

    PostgreSQL locks the row (`FOR NO KEY UPDATE`, so that foreign keys to it can still be made). SQLite needs no
    row lock: transactions begin IMMEDIATE and there is one writer.
    """
    return _locking(rows).first()


def lock_rows(rows: models.QuerySet[M]) -> list[M]:
    """Every row of `rows`, locked as `lock_row` does. Give it an order, so that two who want the same never wait crosswise."""
    return list(_locking(rows))


def _locking(rows: models.QuerySet[M]) -> models.QuerySet[M]:
    if connection.features.has_select_for_update:
        return rows.select_for_update(of=("self",), no_key=True)
    return rows
