"""Tenants' schedules: a django-q2 Schedule for each node of a level and each job type that is registered for that level.

A node's schedules are made and removed in the transactions that make and delete the node. The chore `schedules` makes those
that are missing, for nodes that are older than the registration of a type, and removes those of types that are no longer registered.
"""

from __future__ import annotations

import datetime as dt
import uuid
from functools import partial
from typing import Any

from django.db import connection, transaction
from django.db.models import Q
from django_q.models import Schedule

from apps.core import clock
from apps.core.actors import ActorRef
from apps.core.db import delete_in_chunks, lock_row, lock_rows
from apps.core.errors import NotFound
from apps.core.isolation import for_each
from apps.jobs.models import Job
from apps.jobs.registry import ScheduleSpec, schedules
from apps.jobs.services import enqueue
from apps.tenancy.models import Environment, Organization
from apps.tenancy.scope import Scope

CHORE = "schedules"
QUEUE_JOB = "apps.jobs.schedules.queue_scheduled"

Node = Organization | Environment
_LEVELS: dict[str, type[Node]] = {"organization": Organization, "environment": Environment}


def _name(type: str, node_id: uuid.UUID) -> str:
    return f"{type} {node_id}"


def first_run(node_id: uuid.UUID, minutes: int, now: dt.datetime) -> dt.datetime:
    """When the schedule of a node runs first: within one period, at a moment that follows from the id, so that the schedules of
    many nodes are spread over the period."""
    return now + dt.timedelta(seconds=node_id.int % (minutes * 60))


def _add(spec: ScheduleSpec, node: Node) -> None:
    kwargs = {"type": spec.type, "organization_id": str(node.pk), "environment_id": None}
    if isinstance(node, Environment):
        kwargs |= {"organization_id": str(node.organization_id), "environment_id": str(node.pk)}
    Schedule.objects.create(
        name=_name(spec.type, node.pk),
        func=QUEUE_JOB,
        kwargs=repr(kwargs),
        schedule_type=Schedule.MINUTES,
        minutes=spec.minutes,
        next_run=first_run(node.pk, spec.minutes, clock.now()),
    )


def add_schedules(*, actor: ActorRef, node: Node) -> None:
    """Make the schedules of a new node, in the transaction that makes it."""
    for spec in schedules(node.level):
        _add(spec, node)


def remove_schedules(scope: Scope) -> None:
    """Remove the schedules of a deleted node and of all below it, in the transaction of its tombstone."""
    environments = Environment.objects.filter(scope.below())
    names = [_name(s.type, pk) for s in schedules("environment") for pk in environments.values_list("pk", flat=True)]
    if scope.level == "organization":
        names += [_name(s.type, scope.organization.pk) for s in schedules("organization")]
    # django-q2's scheduler locks those that are due in this order
    rows = lock_rows(Schedule.objects.filter(name__in=names).order_by("next_run", "pk"))
    Schedule.objects.filter(pk__in=[row.pk for row in rows]).delete()


def complete_schedules() -> int:
    """Make the schedules that living nodes lack, and remove those that belong to none; how many."""
    # read before the nodes: the node of a schedule that is being made now is then found
    present = dict(Schedule.objects.filter(func=QUEUE_JOB).values_list("name", "pk"))
    changed = 0
    for level, model in _LEVELS.items():
        ids = list(model.objects.filter(deleted_at__isnull=True).order_by("pk").values_list("pk", flat=True))
        for spec in schedules(level):
            missing = [node_id for node_id in ids if present.pop(_name(spec.type, node_id), None) is None]
            changed += for_each(CHORE, missing, partial(_add_missing, spec, model))
    return changed + delete_in_chunks(Schedule.objects.filter(pk__in=present.values()))


def _add_missing(spec: ScheduleSpec, model: type[Node], node_id: uuid.UUID) -> int:
    with transaction.atomic():
        node = lock_row(model.objects.filter(pk=node_id, deleted_at__isnull=True))
        if node is None or Schedule.objects.filter(name=_name(spec.type, node_id)).exists():
            return 0
        _add(spec, node)
    return 1


@transaction.atomic
def queue_scheduled(*, type: str, organization_id: str, environment_id: str | None, **_: Any) -> Job:
    """Queue the job of a schedule that is due; an older one that still waits becomes a no-op.

    Raises NotFound when its node is being deleted, or nothing runs its type.
    """
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            # a foreign key is otherwise checked at the end of the transaction of all due schedules
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
    alive = Q(pk=organization_id, deleted_at__isnull=True)
    found = Organization.objects.filter(alive).exists()
    if found and environment_id is not None:
        below = Environment.objects.filter(project__organization_id=organization_id)
        found = below.filter(pk=environment_id, deleted_at__isnull=True).exists()
    if not found:
        raise NotFound("The schedule's node does not exist.")
    return enqueue(
        type=type,
        organization_id=uuid.UUID(organization_id),
        environment_id=uuid.UUID(environment_id) if environment_id else None,
        subject_id=uuid.UUID(environment_id or organization_id),
        supersede=True,
    )
