"""What happens to the rows and files below a tombstone.

One function for the API, the admin and the chore: child-first, in chunks, by the foreign keys that the models declare; the files
right after the rows that named them are committed. Audit events stay.
"""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import connection, models, transaction
from django.db.models.functions import Cast

from apps.blobs.models import StoredBlob
from apps.blobs.store import store
from apps.jobs.services import wake_chore
from apps.runtime.faults import fault_point
from apps.tenancy.models import Environment, Organization, Project
from apps.tenancy.scope import Scope

INLINE_ROWS = 1000
RUN_SECONDS = 20.0
WANTED_SECONDS = 0.1
"""What one transaction should take; none may take longer than 0.25 s."""
LEAST_ROWS, MOST_ROWS = 100, 20_000
MOST_PARENTS = 5000
GROWTH = 1.5

Node = Organization | Project | Environment
Ids = Sequence[uuid.UUID] | Sequence[str]


def _children(model: type[models.Model]) -> list[tuple[type[models.Model], str]]:
    """(model, name of its foreign key) of every table whose rows fall with rows of `model`."""
    return [
        (relation.related_model, relation.field.name)
        for relation in model._meta.related_objects
        if relation.on_delete is models.CASCADE and isinstance(relation.related_model, type)
    ]


def _paths(model: type[models.Model], lookup: str) -> Iterator[tuple[type[models.Model], str]]:
    """Every table below `model`, deepest first, with the lookup that leads from it up to the node."""
    for child, field in _children(model):
        path = f"{field}__{lookup}" if lookup else field
        yield from _paths(child, path)
        yield child, path


def _steps(node: Node) -> list[tuple[type[models.Model], str]]:
    seen: dict[tuple[type[models.Model], str], None] = {}
    for step in _paths(type(node), ""):
        seen.setdefault(step, None)
    # a table reached on two ways goes once by each, and always before what it hangs from
    return list(seen)


def count_rows(node: Node, ceiling: int) -> int:
    """How many rows hang below `node`; stops counting above `ceiling`."""
    total = 0
    for model, lookup in _steps(node):
        total += len(model._base_manager.filter(**{lookup: node}).values_list("pk")[: ceiling - total + 1])
        if total > ceiling:
            break
    return total


@dataclass(slots=True)
class _Pace:
    """How many rows of one table go in one transaction, and below how many rows they are looked for at once: as many as take
    about `WANTED_SECONDS` here and now."""

    rows: int = 1000
    parents: int = 100

    def learn(self, rows: int, seconds: float) -> None:
        """One transaction took so long for so many rows."""
        if rows < self.rows / 2 and seconds < WANTED_SECONDS:
            return  # there were few: nothing is learned
        factor = WANTED_SECONDS / max(seconds, 0.001)
        self.rows = int(min(MOST_ROWS, max(LEAST_ROWS, self.rows * min(GROWTH, max(0.25, factor)))))

    def learn_width(self, parents: int, rows: int) -> None:
        """So many rows hung below so many others. Wanted are as many parents as one transaction can clear: what it leaves is
        looked for again from the first of them, past all that is gone."""
        fit = parents * self.rows * 0.9 / max(rows, 1)
        self.parents = int(min(MOST_PARENTS, max(1, min(fit, parents * 4))))


class _OutOfTime(Exception):
    """The purge stops here; what is left is found again from the tombstone."""


class _Purge:
    """One run: clears what hangs on rows before the rows themselves, each step a short transaction of its own.

    Stops before `until` (`time.monotonic()`), if given, by raising `_OutOfTime`.
    """

    def __init__(self, until: float | None = None) -> None:
        self.until = until
        self.gone = 0
        self.paces: defaultdict[type[models.Model], _Pace] = defaultdict(_Pace)

    def below(self, model: type[models.Model], ids: Ids) -> None:
        """Everything that hangs on the rows `ids` of `model`. The files of an environment go when the rows that named them
        are committed as gone, and before the environment does."""
        for child, field in _children(model):
            self._children_of(child, field, ids)
            if child is StoredBlob:
                for environment_id in ids:
                    store().delete_prefix(str(environment_id))
                fault_point("blobs.purge.files_gone")

    def _gone(self, model: type[models.Model], delete: Callable[[], int]) -> int:
        """One transaction that deletes rows of `model`; how many it deleted."""
        began = time.monotonic()
        if self.until is not None and began > self.until:
            raise _OutOfTime
        with transaction.atomic():
            _prepare_transaction()
            gone = delete()
        self.gone += gone
        self.paces[model].learn(gone, time.monotonic() - began)
        fault_point("blobs.purge.between_chunks")
        return gone

    def rows(self, model: type[models.Model], ids: Ids) -> int:
        """Delete the rows `ids`, raw: what hangs below them is gone, and the collector would fetch every one."""
        return self._gone(model, lambda: _delete_these(model, ids))

    def _leaves(self, model: type[models.Model], field: str, ids: Ids) -> None:
        """Delete the rows of a table below which nothing hangs; no id of theirs travels."""
        pace, done = self.paces[model], 0
        while done < len(ids):
            some = ids[done : done + pace.parents]
            done += len(some)
            gone, full = 0, True
            while full:
                most = pace.rows
                now = self._gone(model, lambda: _delete_some(model, field, some, most))  # noqa: B023
                gone, full = gone + now, now >= most
            pace.learn_width(len(some), gone)

    def _children_of(self, model: type[models.Model], field: str, ids: Ids) -> None:
        if not _children(model):
            self._leaves(model, field, ids)
            return
        hanging = model._base_manager.filter(**{f"{field}__in": ids})
        while chunk := _some(hanging, min(self.paces[model].rows, MOST_PARENTS)):
            self.below(model, chunk)
            self.rows(model, chunk)


def _prepare_transaction() -> None:
    """Let the present transaction find rows by index, in its order: read from end to end for each few thousand of its rows, a
    large table would cost its square, and a bitmap is made of all that match before the first few are taken. Nobody waits for
    the disk at its end either: what a crash takes back is found again from the tombstone, which goes last and by the same log.
    """
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(
                "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL synchronous_commit = off"
            )


def _raw_delete(rows: models.QuerySet[Any]) -> int:
    return int(rows._raw_delete(rows.db))


def _some(rows: models.QuerySet[Any], most: int) -> Ids:
    """Ids of at most so many of `rows`. As text where they only travel there and back: making objects of them took longer
    than finding them."""
    if connection.vendor != "postgresql":
        return list(rows.values_list("pk", flat=True)[:most])
    with transaction.atomic():
        _prepare_transaction()
        return list(rows.values_list(Cast("pk", models.TextField()), flat=True)[:most])


def _array(ids: Ids) -> str:
    """How PostgreSQL writes an array of ids."""
    return "{" + ",".join(map(str, ids)) + "}"


def _delete_these(model: type[models.Model], ids: Ids) -> int:
    if connection.vendor != "postgresql":
        return _raw_delete(model._base_manager.filter(pk__in=ids))
    quote = connection.ops.quote_name
    table, column = quote(model._meta.db_table), quote(str(model._meta.pk.column))
    with connection.cursor() as cursor:
        cursor.execute(f"DELETE FROM {table} WHERE {column} = ANY(%s::uuid[])", [_array(ids)])  # noqa: S608  (our tables)
        return int(cursor.rowcount)


def _delete_some(model: type[models.Model], field: str, ids: Ids, most: int) -> int:
    """Delete at most so many of the rows whose `field` names one of `ids`."""
    if connection.vendor != "postgresql":
        hanging = model._base_manager.filter(**{f"{field}__in": ids})
        return _raw_delete(model._base_manager.filter(pk__in=hanging.values("pk")[:most]))
    quote = connection.ops.quote_name
    table, column = quote(model._meta.db_table), quote(str(getattr(model._meta.get_field(field), "column", "")))
    # by where the rows lie, so that each is looked up once
    found = f"SELECT ctid FROM {table} WHERE {column} = ANY(%s::uuid[]) LIMIT %s"  # noqa: S608  (names of our tables)
    with connection.cursor() as cursor:
        cursor.execute(f"DELETE FROM {table} WHERE ctid = ANY(ARRAY({found}))", [_array(ids), most])  # noqa: S608
        return int(cursor.rowcount)


def purge_node(node: Node, *, until: float | None = None) -> int:
    """Remove `node`, every row below it and every file of theirs; how many rows went. Safe to repeat and to interrupt: a run
    that was killed, or that stops because it is `until` (`time.monotonic()`), is finished by the next, which starts from the
    tombstone that is deleted last.
    """
    run = _Purge(until)
    try:
        run.below(type(node), [node.pk])
        run.rows(type(node), [node.pk])
    except _OutOfTime:
        return run.gone
    return run.gone


def purge_now_or_later(scope: Scope) -> bool:
    """Tenancy's purger: at once when it is small, else the chore is woken."""
    node = scope.node
    if count_rows(node, INLINE_ROWS) <= INLINE_ROWS:
        purge_node(node)
        return True
    with transaction.atomic():
        wake_chore("tree_purge")
    return False


def purge_tombstones(*, seconds: float = RUN_SECONDS) -> int:
    """Go on with every deletion that was begun, outermost first, for about so long, so that other chores have their turn; the
    rest is done by the next run, which follows at once. How many rows went."""
    gone, until = 0, time.monotonic() + seconds
    for model in (Organization, Project, Environment):
        for node in model.objects.filter(deleted_at__isnull=False).order_by("pk"):
            gone += purge_node(node, until=until)
            if time.monotonic() > until:
                with transaction.atomic():
                    wake_chore("tree_purge")
                return gone
    return gone


def sweep_orphans(*, before: Any) -> int:
    """Remove files written before the moment `before` that no row names; how many."""
    gone = 0
    for key, written in store().listing():
        if written >= before:
            continue
        parts = key.split("/")
        named = False
        if len(parts) == 3:
            try:
                environment_id = uuid.UUID(parts[0])
            except ValueError:
                environment_id = None
            if environment_id is not None:
                named = StoredBlob.objects.filter(environment_id=environment_id, sha256=parts[2]).exists()
        if not named:
            store().delete(key)
            gone += 1
    return gone
