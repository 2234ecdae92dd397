"""Limits of one organization: a superuser sets them, they count within seconds, and a call costs no query for them."""

from __future__ import annotations

import time
from typing import Any

import pytest
from django.db import IntegrityError, OperationalError, connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from apps.access.models import User
from apps.access.roles import Role
from apps.audit.models import AuditEvent
from apps.core.actors import SYSTEM_ACTOR
from apps.core.errors import BadRequest, NotFound, PreconditionFailed
from apps.limits import overrides, services, windows
from apps.limits.models import RANGES, RateOverride
from apps.tenancy import services as tenancy
from apps.tenancy.models import Organization
from apps.tenancy.scope import Scope
from tests.support import Tenant, caller_for, give_role, in_threads, make_person

pytestmark = [pytest.mark.postgres, pytest.mark.django_db]

LIST = "/admin/limits/rateoverride/"


@pytest.fixture(autouse=True)
def _fresh() -> None:
    windows._local.reset()
    windows._leases.reset()


def set_limits(organization: Organization, *, rev: int | None = None, **limits: int | None) -> RateOverride:
    made = services.set_rate_override(actor=SYSTEM_ACTOR, organization=organization, expected_rev=rev, **limits)
    overrides.forget()
    return made


def limit_of(person: User) -> int:
    return int(caller_for(person).get("/me").headers["X-RateLimit-Limit"])


def test_people_of_the_organization_have_its_limit_and_others_the_usual(tenant: Tenant) -> None:
    session = Client()
    session.force_login(tenant.people["bob"])
    row = set_limits(tenant.organization, person_calls=100)
    assert [limit_of(tenant.people[name]) for name in ("alice", "bob", "vera", "charlie")] == [100, 100, 100, 600]
    assert session.get("/api/v1/me").headers["X-RateLimit-Limit"] == "100"
    set_limits(tenant.organization, rev=row.rev, person_calls=900)
    assert [limit_of(tenant.people[name]) for name in ("alice", "charlie")] == [900, 600]
    services.delete_rate_override(actor=SYSTEM_ACTOR, organization=tenant.organization)
    overrides.forget()
    assert limit_of(tenant.people["alice"]) == 600


def test_a_person_of_several_organizations_has_the_highest_limit_of_them(tenant: Tenant) -> None:
    alice = tenant.people["alice"]
    give_role(alice, Role.VIEWER, tenant.other_organization)
    set_limits(tenant.organization, person_calls=100)
    # the other organization gives the usual 600: one tenant takes nothing from what a person does in another
    assert limit_of(alice) == 600
    set_limits(tenant.other_organization, person_calls=300)
    assert limit_of(alice) == 300
    assert limit_of(make_person("nobody")) == 600


def test_of_parallel_calls_exactly_the_limit_of_the_organization_passes(transactional_db: None, tenant: Tenant) -> None:
    set_limits(tenant.organization, person_calls=60)
    alice = caller_for(tenant.people["alice"])
    calls = in_threads(*[lambda: [alice.get("/me").status_code for _ in range(9)] for _ in range(8)])
    codes = [code for each in calls for code in each]
    assert sorted(codes) == [200] * 60 + [429] * 12


def test_a_call_costs_no_query_for_it_while_it_is_remembered(tenant: Tenant) -> None:
    alice = caller_for(tenant.people["alice"])
    alice.get("/me")

    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            assert alice.get("/me").status_code == 200
        return len(captured)

    before = queries()
    set_limits(tenant.organization, person_calls=100)
    assert queries() == before + 1
    assert [queries() for _ in range(3)] == [before] * 3


def test_a_change_counts_in_every_process_once_it_is_forgotten(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overrides, "REMEMBERED_SECONDS", 0.2)
    alice = caller_for(tenant.people["alice"])
    row = set_limits(tenant.organization, person_calls=100)
    assert alice.get("/me").headers["X-RateLimit-Limit"] == "100"
    RateOverride.objects.filter(pk=row.pk).update(person_calls=200)  # by another process
    time.sleep(0.3)
    assert alice.get("/me").headers["X-RateLimit-Limit"] == "200"


def test_while_the_database_can_not_answer_those_read_before_hold(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(overrides, "REMEMBERED_SECONDS", 0.01)
    set_limits(tenant.organization, agent_calls=100)
    assert overrides.calls_of("agent_calls", [tenant.organization.pk]) == 100

    def refuse(*args: Any) -> Any:
        raise OperationalError("gone")

    time.sleep(0.02)
    with connection.execute_wrapper(refuse):
        assert overrides.calls_of("agent_calls", [tenant.organization.pk]) == 100
        overrides.forget()
        assert overrides.calls_of("agent_calls", [tenant.organization.pk]) == 100
    assert "rate overrides can't be read" in caplog.text


@pytest.mark.parametrize("name", RANGES)
def test_a_limit_outside_of_its_range_is_refused_by_service_and_database(tenant: Tenant, name: str) -> None:
    low, high = RANGES[name]
    for number in (low - 1, high + 1):
        with pytest.raises(BadRequest) as refused:
            set_limits(tenant.organization, **{name: number})
        assert [(error.pointer, error.code) for error in refused.value.errors] == [(f"/{name}", "out_of_range")]
        with pytest.raises(IntegrityError), transaction.atomic():
            RateOverride.objects.create(organization=tenant.organization, **{name: number})
    for number in (low, high):
        RateOverride.objects.all().delete()
        assert getattr(set_limits(tenant.organization, **{name: number}), name) == number


def test_each_change_is_one_revision_and_one_audit_event(tenant: Tenant) -> None:
    row = set_limits(tenant.organization, person_calls=100)
    for stale in (None, 2):
        with pytest.raises(PreconditionFailed):
            set_limits(tenant.organization, rev=stale, person_calls=700)
    assert set_limits(tenant.organization, rev=1, person_calls=100).rev == 1
    assert set_limits(tenant.organization, rev=1, agent_calls=300).rev == 2
    services.delete_rate_override(actor=SYSTEM_ACTOR, organization=tenant.organization)
    events = AuditEvent.objects.filter(target=f"rate_override:{row.pk}").order_by("seq")
    assert {event.organization_id for event in events} == {tenant.organization.pk}
    assert [(event.action, event.details) for event in events] == [
        ("rate_override.set", {"before": {"person_calls": None}, "after": {"person_calls": 100}}),
        (
            "rate_override.set",
            {
                "before": {"person_calls": 100, "agent_calls": None},
                "after": {"person_calls": None, "agent_calls": 300},
            },
        ),
        ("rate_override.deleted", {"before": {"person_calls": None, "agent_calls": 300}}),
    ]
    with pytest.raises(NotFound):
        services.delete_rate_override(actor=SYSTEM_ACTOR, organization=tenant.organization)


def test_it_falls_with_its_organization(transactional_db: None, tenant: Tenant) -> None:
    set_limits(tenant.organization, person_calls=100)
    tenancy.delete_node(actor=SYSTEM_ACTOR, scope=Scope(tenant.organization), force=True)
    assert not RateOverride.objects.exists()
    with pytest.raises(NotFound):
        set_limits(tenant.organization, person_calls=100)


# --- the console ---


def browser(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def text_of(answer: Any) -> str:
    return str(answer.content.decode())


def test_platform_staff_set_change_and_delete_the_limits(tenant: Tenant) -> None:
    staff = browser(make_person("root", is_superuser=True))
    page = text_of(staff.get(f"{LIST}add/"))
    assert "From 60 to 6000; 240 if empty." in page
    organization = {"organization": str(tenant.organization.pk)}
    wrong = staff.post(f"{LIST}add/", {**organization, "person_calls": "59", "agent_calls": ""})
    assert wrong.status_code == 400
    assert "Must be from 60 to 6000, or empty." in text_of(wrong)
    assert not RateOverride.objects.exists()
    made = staff.post(f"{LIST}add/", {**organization, "person_calls": "1200", "agent_calls": ""})
    assert made.status_code == 302
    row = RateOverride.objects.get()
    assert (row.person_calls, row.agent_calls) == (1200, None)
    # an organization has one: it can't be chosen again
    assert str(tenant.organization.pk) not in text_of(staff.get(f"{LIST}add/"))
    change = reverse("admin:limits_rateoverride_change", args=[row.pk])
    edited = {"person_calls": "1200", "agent_calls": "480", "expected_rev": "1"}
    assert staff.post(change, edited).status_code == 302
    assert staff.post(change, {**edited, "agent_calls": "500"}).status_code == 412
    row.refresh_from_db()
    assert (row.person_calls, row.agent_calls, row.rev) == (1200, 480, 2)
    history = text_of(staff.get(reverse("admin:limits_rateoverride_history", args=[row.pk])))
    assert history.count("rate_override.set") == 2
    delete = reverse("admin:limits_rateoverride_delete", args=[row.pk])
    assert "hold for Acme again: 600 calls of a person" in text_of(staff.get(delete))
    assert staff.post(delete).status_code == 302
    assert not RateOverride.objects.exists()
    actors = AuditEvent.objects.filter(action__startswith="rate_override.").values_list("actor_name", flat=True)
    assert set(actors) == {"Root"}
    assert len(actors) == 3


def test_an_admin_of_the_organization_sees_them_and_no_other_person_changes_or_sees_them(tenant: Tenant) -> None:
    row = set_limits(tenant.organization, person_calls=1234)
    change = reverse("admin:limits_rateoverride_change", args=[row.pk])
    delete = reverse("admin:limits_rateoverride_delete", args=[row.pk])
    alice = browser(tenant.people["alice"])
    assert "1234" in text_of(alice.get(change))
    assert "1234" in text_of(alice.get(LIST))
    for name, seen in (("alice", 403), ("bob", 404), ("vera", 404), ("charlie", 404)):
        client = browser(tenant.people[name])
        given = {"organization": str(tenant.other_organization.pk), "person_calls": "6000", "expected_rev": "1"}
        assert client.post(f"{LIST}add/", given).status_code == 403
        assert client.post(change, given).status_code == seen
        assert client.post(delete).status_code == seen
        if name != "alice":
            assert "1234" not in text_of(client.get(LIST))
    assert list(RateOverride.objects.values_list("person_calls", flat=True)) == [1234]
