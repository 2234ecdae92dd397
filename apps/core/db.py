"""Transactions and row locks with the same semantics on SQLite and PostgreSQL."""

from __future__ import annotations

import errno
import itertools
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, TypeVar

from django.conf import settings
from django.db import InterfaceError, OperationalError, connection, connections, models, transaction
from django.db.backends.signals import connection_created

from apps.core import context
from apps.core.errors import NotFound

M = TypeVar("M", bound=models.Model)

atomic = transaction.atomic
V = TypeVar("V")


def outside_transaction(call: Callable[[], object]) -> None:
    """Run `call` outside of the caller's transaction, for writes that must last though the caller is refused.

    At once if no transaction is open, else at the end of the request. Outside of a request it runs at once, in the open
    transaction. A service that uses it for everything of that kind can run in a transaction of its caller.
    """
    if not (connection.in_atomic_block and context.at_end(call)):
        call()


# raised when the database is unavailable, full or overloaded; close the connection and retry later
DATABASE_AWAY = (OperationalError, InterfaceError)

_LOCK_OR_TIMEOUT = ("55P03", "57014")
"""PostgreSQL's error codes for a statement that waited too long, for a lock or for its result."""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """`error` and the errors that caused it."""
    while error is not None:
        yield error
        error = error.__cause__


def _is_one_of(error: BaseException, sqlstates: Collection[str], sqlite_name: str) -> bool:
    """Whether `error` or its cause has one of PostgreSQL's codes, or SQLite's name of an error."""
    return any(
        getattr(each, "sqlstate", None) in sqlstates or getattr(each, "sqlite_errorname", "") == sqlite_name
        for each in _causes(error)
    )


def is_statement_timeout(error: BaseException) -> bool:
    """Return whether a statement was ended by the limits of `bound_statements`."""
    return _is_one_of(error, _LOCK_OR_TIMEOUT, "SQLITE_INTERRUPT")


def refused_by_lock(error: BaseException) -> bool:
    """Return whether a statement waited too long for a lock or its result, or was the victim of a deadlock."""
    return _is_one_of(error, (*_LOCK_OR_TIMEOUT, "40001", "40P01"), "SQLITE_INTERRUPT")


def database_away(error: BaseException) -> bool:
    """Return whether the whole database is unavailable: unreachable, full, or overloaded. Other statements fail as
    well."""
    return isinstance(error, DATABASE_AWAY) and not refused_by_lock(error)


def is_full(error: BaseException) -> bool:
    """Return whether `error` or its cause means that storage is full: of the operating system, SQLite or PostgreSQL."""
    no_space = (errno.ENOSPC, errno.EDQUOT)
    full = any(isinstance(each, OSError) and each.errno in no_space for each in _causes(error))
    return full or _is_one_of(error, ("53100",), "SQLITE_FULL")


MOST_PARAMETERS = 10_000
"""Values that a statement names at most. PostgreSQL takes 65,535 parameters in a statement, SQLite as few as 32,766."""


def in_chunks(values: Iterable[V]) -> Iterator[list[V]]:
    """Yield `values` in lists of at most `MOST_PARAMETERS`, for statements that name each."""
    left = iter(values)
    while chunk := list(itertools.islice(left, MOST_PARAMETERS)):
        yield chunk


def update_each(rows: models.QuerySet[Any], ids: Iterable[Any], **columns: object) -> None:
    """Update those of `rows` whose primary keys are `ids`, any number of them."""
    for chunk in in_chunks(ids):
        rows.filter(pk__in=chunk).update(**columns)


_CHUNK = 2000


def delete_in_chunks(rows: models.QuerySet[Any]) -> int:
    """Delete `rows` in transactions of at most 2,000. Returns the number of deleted rows, cascades included. Safe to
    interrupt.

    It waits for no row lock, so it can't deadlock with a transaction that changes some of the rows in another order: a
    row that another transaction holds is left to the next call.
    """
    deleted = 0
    while ids := list(rows.values_list("pk", flat=True)[:_CHUNK]):
        with transaction.atomic():
            free = list(_free(rows.filter(pk__in=ids)).values_list("pk", flat=True))
            deleted += rows.model._default_manager.filter(pk__in=free).delete()[0]
        if not free:
            break
    return deleted


def _free(rows: models.QuerySet[M]) -> models.QuerySet[M]:
    """Lock those of `rows` that no other transaction holds, for deletion."""
    if connection.features.has_select_for_update_skip_locked:
        return rows.select_for_update(of=("self",), skip_locked=True)
    return rows


STATEMENT_SECONDS = 10.0
"""Maximum run time of one statement of a web process."""
LOCK_SECONDS = 8.0
"""Maximum time that one statement of a web process waits for a lock (PostgreSQL)."""
_STEPS_BETWEEN_LOOKS = 100_000


def bound_statements(*, seconds: float = STATEMENT_SECONDS, lock_seconds: float = LOCK_SECONDS) -> None:
    """Limit the run time of every statement on connections that this process opens from now on.

    For web processes, so that no request occupies a thread and the database for longer. On PostgreSQL by
    `statement_timeout` and `lock_timeout`; on SQLite by a progress handler. SQLite calls Python for `REGEXP`, which
    can't be interrupted: no user input reaches a `regex` lookup.
    """
    for alias in connections:
        options = connections.databases[alias].setdefault("OPTIONS", {})
        if settings.BYTEOR_DATABASE_DIRECT_URL:
            continue  # a pooler keeps no session state: the role's own settings limit its statements
        if connections.databases[alias]["ENGINE"].endswith("postgresql"):
            bounds = {"statement_timeout": seconds, "lock_timeout": lock_seconds}
            flags = " ".join(f"-c {name}={int(value * 1000)}" for name, value in bounds.items())
            options["options"] = f"{options.get('options', '')} {flags}".strip()

    def bound(connection: Any, **_: Any) -> None:
        if connection.vendor == "sqlite":
            clock = _StatementClock(seconds)
            others = [wrapper for wrapper in connection.execute_wrappers if not isinstance(wrapper, _StatementClock)]
            connection.execute_wrappers[:] = [*others, clock]
            connection.connection.set_progress_handler(clock.is_over, _STEPS_BETWEEN_LOOKS)

    connection_created.connect(bound, weak=False, dispatch_uid="byteor.bound_statements")


class _StatementClock:
    """Start time of a connection's last statement. A connection is used by one thread."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._began = time.monotonic()

    def __call__(self, execute: Callable[..., Any], *arguments: Any) -> Any:
        self._began = time.monotonic()
        return execute(*arguments)

    def is_over(self) -> int:
        """Return whether the time is over. SQLite interrupts the statement on a nonzero result."""
        return int(time.monotonic() - self._began > self._seconds)


def reason(error: BaseException) -> str:
    """Format `error` as one log line: its type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def lock_row(rows: models.QuerySet[M]) -> M | None:
    """Lock and return the only row of `rows` until the transaction ends, or return None.

    PostgreSQL locks the row (`FOR NO KEY UPDATE`, so that foreign keys to it can still be inserted). SQLite needs no
    row lock: transactions begin IMMEDIATE and there is one writer.
    """
    return _only(_locking(rows))


def require_row(rows: type[M] | models.QuerySet[M], **values: Any) -> M:
    """Return the only row of `rows`, a model or a queryset, that has these values. Raises NotFound."""
    row = _only(_having(rows, values))
    if row is None:
        raise NotFound()
    return row


def require_locked(rows: type[M] | models.QuerySet[M], **values: Any) -> M:
    """Lock and return the row of `require_row`, as `lock_row` does. Raises NotFound."""
    return require_row(_locking(_having(rows, values)))


def _having(rows: type[M] | models.QuerySet[M], values: dict[str, Any]) -> models.QuerySet[M]:
    found = rows._default_manager.all() if isinstance(rows, type) else rows
    return found.filter(**values)


def _only(rows: models.QuerySet[M]) -> M | None:
    # without the order that `first()` adds: what is unique needs none, and it costs more than the filter
    return next(iter(rows[:1]), None)


def lock_rows(rows: models.QuerySet[M]) -> list[M]:
    """Lock every row of `rows` as `lock_row` does. Pass an ordered queryset, so that concurrent calls can't deadlock."""
    return list(_locking(rows))


def _locking(rows: models.QuerySet[M]) -> models.QuerySet[M]:
    if connection.features.has_select_for_update:
        return rows.select_for_update(of=("self",), no_key=True)
    return rows
