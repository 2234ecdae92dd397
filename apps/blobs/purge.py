"""What happens to the rows and files below a tombstone.

One function for the API, the admin and the chore: child-first, in chunks, by the foreign keys that the models declare; the files
right after the rows that named them are committed. Audit events stay.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

from django.db import models, transaction

from apps.blobs.models import StoredBlob
from apps.blobs.store import store
from apps.jobs.services import wake_chore
from apps.runtime.faults import fault_point
from apps.tenancy.models import Environment, Organization, Project
from apps.tenancy.scope import Scope

INLINE_ROWS = 1000
CHUNK_ROWS = 2000

Node = Organization | Project | Environment


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


def _delete_chunked(rows: models.QuerySet[Any]) -> int:
    model, gone = rows.model, 0
    while True:
        with transaction.atomic():
            chunk = list(rows.values_list("pk", flat=True)[:CHUNK_ROWS])
            if not chunk:
                return gone
            # a raw delete: what hangs below is gone already, and the collector would fetch every row
            doomed = model._base_manager.filter(pk__in=chunk)
            gone += int(doomed._raw_delete(doomed.db))
        fault_point("blobs.purge.between_chunks")


def _environment_ids(node: Node) -> list[uuid.UUID]:
    lookup = {"organization": "project__organization", "project": "project", "environment": "pk"}[node.level]
    value = node.pk if node.level == "environment" else node
    return list(Environment.objects.filter(**{lookup: value}).values_list("pk", flat=True))


def purge_node(node: Node) -> int:
    """Remove `node`, every row below it and every file of theirs; how many rows went. Safe to repeat and to interrupt.

    The files go once the rows that named them are committed as gone, and before the environments do; a run that was killed
    in between is finished by the next, which starts from the tombstone that is deleted last.
    """
    environments = _environment_ids(node)
    gone = 0
    for model, lookup in _steps(node):
        gone += _delete_chunked(model._base_manager.filter(**{lookup: node}))
        if model is StoredBlob:
            for environment_id in environments:
                store().delete_prefix(str(environment_id))
            fault_point("blobs.purge.files_gone")
    gone += _delete_chunked(type(node).objects.filter(pk=node.pk))
    return gone


def purge_now_or_later(scope: Scope) -> bool:
    """Tenancy's purger: at once when it is small, else the chore is woken."""
    node = scope.node
    if count_rows(node, INLINE_ROWS) <= INLINE_ROWS:
        purge_node(node)
        return True
    with transaction.atomic():
        wake_chore("tree_purge")
    return False


def purge_tombstones() -> int:
    """Finish every deletion that was begun, outermost first; how many rows went."""
    gone = 0
    for model in (Organization, Project, Environment):
        for node in model.objects.filter(deleted_at__isnull=False).order_by("pk"):
            gone += purge_node(node)
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
