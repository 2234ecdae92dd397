"""What many tests begin with is made once in a test process, and its rows are inserted again for each test."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import time_machine
from django.apps import apps
from django.core.cache import caches
from django.db import connection, models
from django.db.models import sql

from apps.audit.coalescing import coalescer
from apps.core import isolation
from apps.jobs.services import claims
from apps.limits import windows
from apps.signing.services import key_use
from tests.support import make_tenant

T = TypeVar("T")


def _tables() -> list[type[models.Model]]:
    return [model for model in apps.get_models(include_auto_created=True) if model._meta.managed]


def _rows() -> dict[type[models.Model], dict[Any, models.Model]]:
    return {model: {row.pk: row for row in model._base_manager.all()} for model in _tables()}


def forget_what_is_remembered() -> None:
    """The same ids come again, as in a test with copied rows or a walk that is rolled back: nothing in this process may remember them."""
    caches["limits"].clear()
    windows._leases.reset()
    windows._local.reset()
    key_use._signers.clear()
    coalescer._seen.clear()
    claims._served.clear()
    isolation._failures._rows.clear()


class Copies(Generic[T]):
    """`build()` about ten times faster for a test that runs in a transaction: the same rows, ids and secrets each time.

    Other tests may have other processes that remember the ids: for these it is `build()`. Only for an empty database: rows that
    `build` inserts are copied, not what it changes in rows that were there before.
    """

    def __init__(self, build: Callable[[], T]) -> None:
        self._build = build
        self._made: T | None = None
        self._statements: list[tuple[str, Any]] = []

    def make(self) -> T:
        """A copy of what `build` returned, its rows inserted. By `build` itself the first time, while a test moves the clock, and
        outside a transaction."""
        if time_machine.escape_hatch.is_travelling() or not connection.in_atomic_block:
            return self._build()
        forget_what_is_remembered()
        if self._made is None:
            before = _rows()
            made = self._build()
            self._statements = [
                statement
                for model, rows in _rows().items()
                if (new := [row for pk, row in rows.items() if pk not in before[model]])
                for statement in _insert(model, new)
            ]
            self._made = copy.deepcopy(made)
            return made
        with connection.cursor() as cursor:
            for statement, parameters in self._statements:
                cursor.execute(statement, parameters)
        return copy.deepcopy(self._made)


def _insert(model: type[models.Model], rows: list[models.Model]) -> list[tuple[str, Any]]:
    query = sql.InsertQuery(model)
    query.insert_values(model._meta.concrete_fields, rows, raw=True)
    return query.get_compiler(connection=connection).as_sql()


tenants = Copies(make_tenant)
