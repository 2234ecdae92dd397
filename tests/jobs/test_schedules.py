"""Tenants' schedules: rows of django-q2 that its scheduler turns into jobs."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection, transaction
from django_q.models import Schedule
from django_q.scheduler import scheduler

from apps.core import clock
from apps.core.actors import SYSTEM_ACTOR
from apps.core.db import lock_row
from apps.core.ids import new_id
from apps.jobs import registry, runner, schedules
from apps.jobs.broker import JobTableBroker
from apps.jobs.models import Job
from apps.jobs.registry import JobRun
from apps.tenancy.models import Environment
from apps.tenancy.scope import Scope
from apps.tenancy.services import create_environment, create_organization, create_project, delete_node
from tests.support import Racer

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgres]
EACH_ENVIRONMENT, EACH_ORGANIZATION = "test_each_environment", "test_each_organization"
ran: list[tuple[str, uuid.UUID]] = []


def handler(run: JobRun) -> None:
    ran.append((run.type, run.subject_id))


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    ran.clear()
    monkeypatch.setattr(registry, "_schedules", [])
    for type, level, minutes in ((EACH_ENVIRONMENT, "environment", 1440), (EACH_ORGANIZATION, "organization", 60)):
        registry.register_handler(type, handler)
        registry.register_schedule(type, level=level, minutes=minutes)
    yield
    for type in (EACH_ENVIRONMENT, EACH_ORGANIZATION):
        registry._handlers.pop(type)


def names() -> set[str]:
    return set(Schedule.objects.values_list("name", flat=True))


def make_all_due() -> None:
    Schedule.objects.update(next_run=clock.now() - dt.timedelta(minutes=1))


def tree() -> tuple[Any, Any, Environment]:
    organization = create_organization(actor=SYSTEM_ACTOR, name=f"O {new_id()}")
    project = create_project(actor=SYSTEM_ACTOR, organization=organization, name="P")
    return organization, project, create_environment(actor=SYSTEM_ACTOR, project=project, name="dev", posture="dev")


def test_a_new_node_has_its_schedules_within_one_period() -> None:
    organization, _, environment = tree()
    found = {row.name: row for row in Schedule.objects.all()}
    assert set(found) == {f"{EACH_ORGANIZATION} {organization.pk}", f"{EACH_ENVIRONMENT} {environment.pk}"}
    first = found[f"{EACH_ENVIRONMENT} {environment.pk}"]
    assert dt.timedelta(0) <= first.next_run - environment.created_at < dt.timedelta(days=1, seconds=5)


def test_first_runs_are_spread_over_the_period() -> None:
    now = clock.now()
    offsets = sorted((schedules.first_run(new_id(), 1440, now) - now).total_seconds() for _ in range(200))
    hours = {int(offset // 3600) for offset in offsets}
    assert hours <= set(range(24))
    assert len(hours) > 12


def test_a_due_schedule_becomes_a_job_that_runs_and_is_due_again_a_period_later() -> None:
    organization, _, environment = tree()
    make_all_due()
    scheduler(broker=JobTableBroker())
    assert set(Job.objects.values_list("type", "subject_id", "organization_id", "environment_id", "status")) == {
        (EACH_ORGANIZATION, organization.pk, organization.pk, None, "queued"),
        (EACH_ENVIRONMENT, environment.pk, organization.pk, environment.pk, "queued"),
    }
    assert min(Schedule.objects.values_list("next_run", flat=True)) > clock.now()
    assert runner.drain() == 2
    assert set(ran) == {(EACH_ORGANIZATION, organization.pk), (EACH_ENVIRONMENT, environment.pk)}
    scheduler(broker=JobTableBroker())
    assert Job.objects.count() == 2


@pytest.mark.parametrize("bad", ["no handler", "no such node", "no arguments", "node of another organization"])
def test_one_bad_row_holds_up_no_other(bad: str) -> None:
    organization, _, environment = tree()
    other, _, _ = tree()
    kwargs = {
        "no handler": {"type": "nobody", "organization_id": str(organization.pk), "environment_id": None},
        "no such node": {"type": EACH_ORGANIZATION, "organization_id": str(new_id()), "environment_id": None},
        "no arguments": {},
        "node of another organization": {
            "type": EACH_ENVIRONMENT, "organization_id": str(other.pk), "environment_id": str(environment.pk),
        },
    }[bad]  # fmt: skip
    first = Schedule.objects.order_by("pk").first()
    assert first is not None
    Schedule.objects.filter(pk=first.pk).update(kwargs=repr(kwargs))
    make_all_due()
    scheduler(broker=JobTableBroker())
    assert Job.objects.count() == 3
    assert min(Schedule.objects.values_list("next_run", flat=True)) > clock.now(), (
        "the bad row is not due at once again"
    )


@pytest.mark.parametrize("level", ["environment", "project", "organization"])
def test_a_tombstone_removes_the_schedules_below_it(level: str) -> None:
    organization, project, environment = tree()
    sibling = create_environment(actor=SYSTEM_ACTOR, project=project, name="two", posture="dev")
    tree()
    before = names()
    scope = {
        "environment": Scope(organization, project, environment),
        "project": Scope(organization, project),
        "organization": Scope(organization),
    }[level]
    removed = {f"{EACH_ENVIRONMENT} {environment.pk}"}
    if level != "environment":
        removed.add(f"{EACH_ENVIRONMENT} {sibling.pk}")
    if level == "organization":
        removed.add(f"{EACH_ORGANIZATION} {organization.pk}")
    delete_node(actor=SYSTEM_ACTOR, scope=scope, force=True)
    assert before - names() == removed


@pytest.mark.skipif("not __import__('django').db.connection.features.has_select_for_update", reason="no row locks")
def test_a_deletion_and_the_scheduler_do_not_wait_for_each_other(
    monkeypatch: pytest.MonkeyPatch, transactional_db: None
) -> None:
    """Both lock the schedules of several environments: in one order, or the database refuses one."""
    organization, project, _ = tree()
    for slug in ("two", "three"):
        create_environment(actor=SYSTEM_ACTOR, project=project, name=slug, posture="dev")
    rows = list(Schedule.objects.filter(name__startswith=EACH_ENVIRONMENT).order_by("pk").values_list("pk", flat=True))
    Schedule.objects.update(next_run=clock.now() + dt.timedelta(days=1))
    for minutes, pk in enumerate(rows, start=1):  # due in the order opposite to that in which they are stored
        Schedule.objects.filter(pk=pk).update(next_run=clock.now() - dt.timedelta(minutes=minutes))
    refused: list[str] = []
    monkeypatch.setattr("django_q.scheduler.logger.exception", refused.append)
    with transaction.atomic():
        assert lock_row(Schedule.objects.filter(pk=rows[1])) is not None  # both come as far as this row
        queueing = Racer(lambda: scheduler(broker=JobTableBroker()))
        queueing.until_it_waits()
        deletion = Racer(lambda: delete_node(actor=SYSTEM_ACTOR, scope=Scope(organization, project), force=True))
        deletion.until_it_waits()
    assert queueing.outcome() is None
    assert isinstance(deletion.outcome(), bool), deletion.outcome()
    assert refused == []
    assert not Schedule.objects.filter(pk__in=rows).exists()


def test_a_schedule_that_outlived_its_node_queues_nothing() -> None:
    organization, _, environment = tree()
    type(environment).objects.filter(pk=environment.pk).update(deleted_at=clock.now())
    make_all_due()
    scheduler(broker=JobTableBroker())
    assert list(Job.objects.values_list("type", flat=True)) == [EACH_ORGANIZATION]
    assert organization.pk == Job.objects.get().subject_id


def test_nodes_that_are_older_than_a_type_get_its_schedule_once_and_unregistered_types_lose_theirs() -> None:
    tree()
    expected = names()
    Schedule.objects.all().delete()
    schedules.add_schedules(actor=SYSTEM_ACTOR, node=Environment.objects.get())
    Schedule.objects.create(name=f"gone {new_id()}", func=schedules.QUEUE_JOB, kwargs="{}")
    someone_elses = Schedule.objects.create(name="not ours", func="math.sqrt", args="4")
    assert schedules.complete_schedules() == 2
    assert names() == expected | {"not ours"}
    assert schedules.complete_schedules() == 0
    someone_elses.delete()


def test_a_newer_run_supersedes_one_that_still_waits() -> None:
    tree()
    for _ in range(2):
        make_all_due()
        scheduler(broker=JobTableBroker())
    assert runner.drain() == 4
    assert len(ran) == 2


def test_a_broken_foreign_key_fails_with_its_own_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL checks foreign keys at commit unless asked otherwise: then a node that is purged just now would undo all."""
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has one writer: nothing is purged while schedules run")
    organization, _, _ = tree()
    real = schedules.enqueue

    def purged_meanwhile(**arguments: Any) -> Job:
        if arguments["type"] == EACH_ORGANIZATION:
            arguments["organization_id"] = new_id()
        return real(**arguments)

    monkeypatch.setattr(schedules, "enqueue", purged_meanwhile)
    make_all_due()
    scheduler(broker=JobTableBroker())
    assert list(Job.objects.values_list("type", "organization_id")) == [(EACH_ENVIRONMENT, organization.pk)]
