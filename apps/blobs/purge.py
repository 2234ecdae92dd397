"""Deletes the rows and files below a tombstone.

The API, the admin and the periodic job use the same function. It deletes children first, following the models' foreign
keys, in batches of at most 2,000 rows. Each batch is a short transaction. Audit events stay.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Sequence
from typing import Any

import structlog
from django.db import models, transaction

from apps.blobs.store import store
from apps.core.db import DATABASE_AWAY, reason
from apps.core.isolation import for_each
from apps.jobs.services import wake_chore
from apps.runtime.faults import fault_point
from apps.tenancy.models import Environment, Organization, Project
from apps.tenancy.scope import Scope
from apps.tenancy.services import node_by_id

log = structlog.get_logger(__name__)

PURGE_CHORE = "tree_purge"
BATCH = 2000
"""Maximum number of rows that one transaction deletes."""
PARENTS = 500
"""Maximum number of rows that are deleted together after their children."""
INLINE_ROWS = 1000
INLINE_SECONDS = 5.0
"""How long the deleting request may spend on the purge."""
RUN_SECONDS = 20.0

Node = Organization | Project | Environment


class _Unfinished(Exception):
    """The purge's time or its number of rows is used up. The next run continues from the tombstone."""


def _children(model: type[models.Model]) -> list[tuple[type[models.Model], str]]:
    """Return (model, column of its foreign key) of every table that cascades from `model`."""
    return [
        (relation.related_model, relation.field.attname)
        for relation in model._meta.related_objects
        if relation.on_delete is models.CASCADE and isinstance(relation.related_model, type)
    ]


class _Purge:
    """One run. Raises `_Unfinished` at `until` (`time.monotonic()`) and after more than `rows` rows, if given."""

    def __init__(self, until: float | None = None, rows: int | None = None) -> None:
        self.until = until
        self.rows = rows
        self.deleted = 0

    def below(self, model: type[models.Model], ids: Sequence[Any]) -> None:
        """Delete everything below the rows `ids` of `model`."""
        for child, key in _children(model):
            if not _children(child):
                self._leaves(child, key, ids)
                continue
            while parents := _some(child, key, ids, PARENTS):
                self.below(child, parents)
                self.delete(child, "pk", parents)
        if model is Environment:
            self._files(ids)

    def _leaves(self, model: type[models.Model], key: str, ids: Sequence[Any]) -> None:
        """Delete the rows of `model`, a table without children, whose foreign key is one of `ids`."""
        if not _some(model, key, ids, 1, after=BATCH):
            self.delete(model, key, ids)
        elif len(ids) > 1:
            half = len(ids) // 2
            self._leaves(model, key, ids[:half])
            self._leaves(model, key, ids[half:])
        else:
            while batch := _some(model, key, ids, BATCH):
                self.delete(model, "pk", batch)

    def _files(self, environment_ids: Sequence[Any]) -> None:
        """Delete the files of environments without rows. Their keys begin with the environment's id."""
        for environment_id in environment_ids:
            if not store().delete_prefix(str(environment_id), until=self.until):
                raise _Unfinished
        fault_point("blobs.purge.files_deleted")

    def delete(self, model: type[models.Model], key: str, ids: Sequence[Any]) -> None:
        """Delete the rows whose `key` is one of `ids`, without Django's collector: it would read each row."""
        if self.until is not None and time.monotonic() > self.until:
            raise _Unfinished
        if self.rows is not None and self.deleted > self.rows:
            raise _Unfinished
        with transaction.atomic():
            rows = model._base_manager.filter(**{f"{key}__in": ids})
            self.deleted += rows._raw_delete(rows.db)
        fault_point("blobs.purge.between_chunks")


def _some(model: type[models.Model], key: str, ids: Sequence[Any], most: int, after: int = 0) -> list[Any]:
    """Return the primary keys of at most `most` rows whose foreign key is one of `ids`, after the first `after`.

    They are read in the order of the foreign key: by its index, not by reading the whole table for each batch.
    """
    rows = model._base_manager.filter(**{f"{key}__in": ids}).order_by(key)
    return list(rows.values_list("pk", flat=True)[after : after + most])


def purge_node(node: Node, *, until: float | None = None) -> int:
    """Delete `node`, every row below it and all their files. Returns the number of deleted rows.

    Safe to repeat and to interrupt: the tombstone is deleted last, and the next run continues from it after a crash or
    after `until` (`time.monotonic()`).
    """
    run = _Purge(until)
    with contextlib.suppress(_Unfinished):
        _run(run, node)
    return run.deleted


def _run(run: _Purge, node: Node) -> None:
    run.below(type(node), [node.pk])
    run.delete(type(node), "pk", [node.pk])


def purge_now_or_later(scope: Scope) -> bool:
    """Purge a small node within `INLINE_SECONDS`, otherwise schedule the periodic job. Returns whether all is deleted.

    The tombstone is committed, so an error here, such as an unavailable store, only delays the purge.
    """
    node = scope.node
    try:
        _run(_Purge(time.monotonic() + INLINE_SECONDS, INLINE_ROWS), node)
        return True
    except _Unfinished:
        pass
    except Exception as error:  # the periodic job continues from the tombstone after any error
        log.error("purge deferred to the tree_purge chore", node=str(node.pk), reason=reason(error))
    try:
        with transaction.atomic():
            wake_chore(PURGE_CHORE)
    except DATABASE_AWAY as error:  # the job runs within a minute anyway
        log.warning("tree_purge chore could not be scheduled at once", reason=reason(error))
    return False


def purge_tombstones(*, seconds: float = RUN_SECONDS) -> int:
    """Continue every started deletion, outermost first, for about `RUN_SECONDS`. Returns the number of deleted rows.

    The next run does the rest and follows at once; in between, other periodic jobs can run. A deletion that fails does
    not block the others.
    """
    until = time.monotonic() + seconds
    nodes: list[tuple[str, uuid.UUID]] = []
    for model in (Organization, Project, Environment):
        dead = model.objects.filter(deleted_at__isnull=False).order_by("pk")
        nodes += [(model.level, pk) for pk in dead.values_list("pk", flat=True)]
    deleted = for_each(PURGE_CHORE, nodes, lambda item: _purge_one(*item, until), seconds=seconds)
    if nodes and time.monotonic() > until:
        with transaction.atomic():
            wake_chore(PURGE_CHORE)
    return deleted


def _purge_one(level: str, node_id: uuid.UUID, until: float) -> int:
    node = node_by_id(level, node_id)
    return purge_node(node, until=until) if node is not None else 0
