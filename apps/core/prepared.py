"""Reads of every request, put into SQL once and not each time: building a query costs the ORM more than running it.

What is read, and how rows become models, stays the ORM's; only the text of the statement is kept.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from django.db import connection, models
from django.db.models.query import ModelIterable

T = TypeVar("T")

Argument = uuid.UUID | str


PREPARE_AFTER = 2
"""PostgreSQL plans a statement once for each connection that has run it so often."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """A statement for one kind of database. `slots` says, for each parameter, which argument it is, or None for `fixed`."""

    compiler: Any
    converters: Any
    of_models: bool
    sql: str
    slots: tuple[int | None, ...]
    fixed: tuple[Any, ...]


class _Rows:
    """What Django's iterable asks of a queryset."""

    _known_related_objects: dict[Any, Any] = {}

    def __init__(self, compiler: Any) -> None:
        self.db = compiler.using
        self.query = self
        self._compiler = compiler

    def get_compiler(self, using: str) -> Any:
        return self._compiler


class Prepared(Generic[T]):
    """`build(*arguments)` answers a queryset of models, or of tuples (`values_list`), whose SQL does not depend on what the
    arguments are: ids or text, each used in a filter, never None."""

    def __init__(self, build: Callable[..., models.QuerySet[Any, T]]) -> None:
        self._build = build
        self._plans: dict[str, _Plan] = {}

    def all(self, *arguments: Argument) -> list[T]:
        """Every row for these arguments, in one query."""
        plan = self._plans.get(connection.vendor)
        if plan is None:
            plan = self._plans[connection.vendor] = self._plan(arguments)
        given = [_written(argument) for argument in arguments]
        rows: Any = planned_rows(
            plan.sql,
            [fixed if slot is None else given[slot] for slot, fixed in zip(plan.slots, plan.fixed, strict=True)],
        )
        compiler = copy.copy(plan.compiler)
        compiler.connection = connection
        if plan.converters:
            rows = compiler.apply_converters(rows, plan.converters)
        if not plan.of_models:
            return [tuple(row) for row in rows]  # type: ignore[misc]
        compiler.execute_sql = lambda **_: None
        compiler.results_iter = lambda _: rows
        return list(ModelIterable(_Rows(compiler)))  # type: ignore[arg-type]

    def first(self, *arguments: Argument) -> T | None:
        """The row for these arguments, when there is at most one; None without any."""
        rows = self.all(*arguments)
        return rows[0] if rows else None

    def _plan(self, arguments: Sequence[Argument]) -> _Plan:
        marks = [uuid.uuid4() if isinstance(each, uuid.UUID) else f"argument {uuid.uuid4()}" for each in arguments]
        rows = self._build(*marks)
        compiler = rows.query.get_compiler(connection=connection)
        sql, parameters = compiler.as_sql()
        place = {_written(mark): index for index, mark in enumerate(marks)}
        slots = tuple(place.get(each) if isinstance(each, uuid.UUID | str) else None for each in parameters)
        if set(slots) - {None} != set(range(len(marks))):
            raise TypeError("each argument must be a parameter of the query")
        converters = compiler.get_converters([column[0] for column in compiler.select[: compiler.col_count]])
        of_models = issubclass(rows._iterable_class, ModelIterable)
        return _Plan(compiler, converters, of_models, sql, slots, tuple(parameters))


def planned_rows(sql: str, parameters: Sequence[Any] | Mapping[str, Any]) -> list[Any]:
    """The rows of a statement; on PostgreSQL as one that the server keeps planned."""
    if connection.vendor != "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return list(cursor.fetchall())
    from django.db.backends.postgresql.base import ServerBindingCursor

    connection.close_if_health_check_failed()
    connection.ensure_connection()
    here: Any = connection
    raw = here.connection
    raw.prepare_threshold = PREPARE_AFTER
    # Django's own cursors bind on the client's side, where nothing can be kept planned; its wrapper logs and translates errors
    server_binding: Any = ServerBindingCursor
    with here._prepare_cursor(server_binding(raw)) as cursor:
        cursor.execute(sql, parameters)
        return list(cursor.fetchall())


def _written(argument: Argument) -> Any:
    """As the database driver is given it."""
    if isinstance(argument, uuid.UUID) and not connection.features.has_native_uuid_field:
        return argument.hex
    return argument
