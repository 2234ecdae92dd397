"""Refused attempts and views by platform staff are recorded once an hour, whatever happens to the caller's transaction."""

from __future__ import annotations

import datetime as dt
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import time_machine
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from apps.audit import services
from apps.audit.coalescing import Coalescer
from apps.audit.models import AuditEvent
from apps.core import clock, context
from apps.core.actors import SYSTEM_ACTOR
from apps.core.errors import Forbidden
from tests.support import Tenant, make_person

pytestmark = [pytest.mark.postgres, pytest.mark.django_db]


@pytest.fixture(autouse=True)
def _within_one_hour(tenant: Tenant) -> Iterator[None]:
    """The clock stands still: a real one might pass from one hour into the next within a test."""
    with time_machine.travel(clock.now(), tick=False):
        yield


def denied(actor: object) -> list[AuditEvent]:
    rows = AuditEvent.objects.filter(outcome="denied", actor__contains=str(actor))
    return list(rows.order_by("created_at", "seq"))


def signed_in(user: Any) -> Client:
    client = Client()
    client.force_login(user)
    return client


def test_a_repeated_refused_attempt_is_one_event_an_hour_with_a_count(tenant: Tenant) -> None:
    vera = tenant.caller("vera")
    begin = clock.now().replace(minute=5)
    with time_machine.travel(begin, tick=False) as traveller:
        for _ in range(6):
            assert vera.post(f"{tenant.path()}/drafts", {"name": "x", "spec": ""}).status_code == 403
        assert vera.post(f"{tenant.path(tenant.prod)}/drafts", {"name": "x", "spec": ""}).status_code == 403
        rows = denied(tenant.people["vera"].pk)
        assert [row.target for row in rows] == [f"environment:{tenant.dev.pk}", f"environment:{tenant.prod.pk}"]
        assert all("suppressed" not in row.details for row in rows)
        traveller.shift(dt.timedelta(hours=1))
        vera.post(f"{tenant.path()}/drafts", {"name": "x", "spec": ""})
    assert denied(tenant.people["vera"].pk)[-1].details["suppressed"] == 5
    assert services.verify(tenant.organization.pk).ok


def test_a_suppressed_event_costs_no_query(tenant: Tenant) -> None:
    vera = tenant.caller("vera")
    path = f"{tenant.path()}/drafts"
    vera.post(path, {})
    with CaptureQueriesContext(connection) as captured:
        assert vera.post(path, {}).status_code == 403
    assert not [q for q in captured if "audit" in (q["sql"] or "")]


@pytest.mark.parametrize("level", ["organization", "project", "environment"])
def test_an_invisible_object_and_a_missing_object_cost_the_same(tenant: Tenant, level: str) -> None:
    charlie = tenant.caller("charlie")
    paths = {
        "organization": (f"/orgs/{tenant.organization.pk}", f"/orgs/{uuid.uuid4()}"),
        "project": (
            f"/orgs/{tenant.organization.pk}/projects/{tenant.project.pk}",
            f"/orgs/{tenant.organization.pk}/projects/{uuid.uuid4()}",
        ),
        "environment": (tenant.path(), tenant.path().rsplit("/", 1)[0] + f"/{uuid.uuid4()}"),
    }[level]

    def queries(path: str) -> int:
        with CaptureQueriesContext(connection) as captured:
            assert charlie.get(path).status_code == 404
        return len(captured)

    there, nowhere = paths
    charlie.get("/me")
    first = queries(there)
    assert queries(nowhere) == queries(there) < first
    # in the other order, for a user whose first attempt it is
    dora = make_person("dora")
    from tests.support import caller_for

    charlie = caller_for(dora)
    charlie.get("/me")
    assert queries(nowhere) == first
    assert len(denied(dora.pk)) == 1


def test_scanning_ids_writes_one_row(tenant: Tenant) -> None:
    charlie = tenant.caller("charlie")
    for _ in range(5):
        assert charlie.get(f"/orgs/{uuid.uuid4()}").status_code == 404
        assert charlie.get(tenant.path()).status_code == 404
    assert len(denied(tenant.people["charlie"].pk)) <= 2


def test_a_denial_stays_although_the_transaction_around_it_is_rolled_back(
    transactional_db: None, tenant: Tenant
) -> None:
    from apps.access.policy import require
    from apps.access.roles import Permission

    with context.serving(context.RequestContext(request_id="of-this-request")):
        for _ in range(2):
            with pytest.raises(Forbidden), transaction.atomic():
                require(tenant.principal("vera"), Permission.OPERATE_ENVIRONMENT, tenant.scope())
    rows = denied(tenant.people["vera"].pk)
    assert [(row.organization_id, row.request_id) for row in rows] == [(tenant.organization.pk, "of-this-request")]


def test_a_denial_inside_a_transaction_outside_of_requests_is_written_there(tenant: Tenant) -> None:
    from apps.access.policy import require
    from apps.access.roles import Permission

    with transaction.atomic(), pytest.raises(Forbidden):
        require(tenant.principal("vera"), Permission.OPERATE_ENVIRONMENT, tenant.scope())
    assert len(denied(tenant.people["vera"].pk)) == 1


def test_platform_staff_who_keep_a_page_open_write_one_row(tenant: Tenant) -> None:
    root = make_person("root", is_superuser=True)
    staff = signed_in(root)
    for _ in range(4):
        url = reverse("admin:tenancy_organization_change", args=[tenant.organization.pk])
        assert staff.get(url).status_code == 200
        assert staff.get(reverse("admin:pipelines_pipelinedraft_changelist")).status_code == 200
        assert staff.get(reverse("admin:audit_auditevent_changelist")).status_code == 200
    rows = AuditEvent.objects.filter(action="staff.viewed", actor__contains=str(root.pk))
    targets = sorted(rows.values_list("organization_id", "target"), key=str)
    assert targets == sorted(
        [
            (tenant.organization.pk, f"organization:{tenant.organization.pk}"),
            (None, "pipelinedraft:list"),
            (None, "auditevent:list"),
        ],
        key=str,
    )


def test_the_number_of_remembered_keys_is_bounded_and_a_failed_event_is_written_next() -> None:
    memory = Coalescer(most=10)
    assert [memory.admit("a"), memory.admit("a"), memory.admit("b")] == [0, None, 0]
    for n in range(20):
        memory.admit(n)
    assert len(memory._seen) == 10
    memory.forget(19)
    assert memory.admit(19) == 0


def grow(tenant: Tenant, count: int) -> None:
    for n in range(count):
        services.record(
            organization_id=tenant.organization.pk, action="test.event", actor=SYSTEM_ACTOR, target=f"n:{n}"
        )


def test_a_chain_is_verified_in_parts(tenant: Tenant) -> None:
    grow(tenant, 7)
    whole = services.verify(tenant.organization.pk)
    assert whole.ok
    after, steps = 0, 0
    while True:
        part = services.verify(tenant.organization.pk, after=after, limit=3)
        assert part.ok
        assert part.head == (whole.events, whole.head_hash)
        steps += 1
        if part.next is None:
            break
        after = part.next
    assert steps > 2
    assert (part.events, part.head_hash) == (whole.events, whole.head_hash)
    assert not services.verify(tenant.organization.pk, after=whole.events + 5).ok


def test_an_expected_head_detects_a_restored_chain(tenant: Tenant, capsys: Any) -> None:
    grow(tenant, 2)
    org = str(tenant.organization.pk)
    before = services.verify(tenant.organization.pk)
    grow(tenant, 2)
    recorded = services.verify(tenant.organization.pk)
    assert services.verify(tenant.organization.pk, expect=(before.events, before.head_hash)).ok
    call_command("audit", "verify", "--org-id", org, "--expect", f"{recorded.events}:{recorded.head_hash}")
    wrong = services.verify(tenant.organization.pk, expect=(before.events, recorded.head_hash))
    assert (wrong.ok, wrong.broken_at) == (False, before.events)
    more = services.verify(tenant.organization.pk, expect=(recorded.events + 3, recorded.head_hash))
    assert (more.ok, more.broken_at) == (False, recorded.events + 1)
    with pytest.raises(SystemExit):
        call_command("audit", "verify", "--org-id", org, "--expect", f"{recorded.events + 1}:{recorded.head_hash}")
    with pytest.raises(CommandError):
        call_command("audit", "verify", "--org-id", org, "--expect", "nonsense")


def test_verification_blocks_no_write_and_is_correct_while_the_chain_grows(
    transactional_db: None, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow(tenant, 10)
    monkeypatch.setattr(services, "VERIFY_BATCH", 2)
    hashed = services._hash
    walking, write = threading.Event(), threading.Event()

    def slowly(event: AuditEvent) -> str:
        if threading.current_thread().name == "walk":
            walking.set()
            write.wait(30)
        return hashed(event)

    monkeypatch.setattr(services, "_hash", slowly)
    found: list[Any] = []

    def walk() -> None:
        try:
            found.append(services.verify(tenant.organization.pk))
        finally:
            connection.close()

    thread = threading.Thread(target=walk, name="walk")
    thread.start()
    assert walking.wait(30)
    grow(tenant, 3)
    write.set()
    thread.join(60)
    assert found[0].ok
    assert services.verify(tenant.organization.pk).events == found[0].events + 3
