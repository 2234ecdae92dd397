"""Every screen of the admin shows what the roles give, and writes nothing but through the services."""

from __future__ import annotations

import pytest
from django.apps import apps
from django.contrib import admin
from django.test import Client
from django.urls import reverse

from apps.access.models import Membership
from apps.audit.models import AuditEvent
from apps.jobs.models import Job
from apps.limits.services import set_rate_override
from apps.tenancy.models import Environment, Organization, Project
from tests.deployments.world import World
from tests.support import PASSWORD, make_person

pytestmark = pytest.mark.django_db


def browser(user) -> Client:
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def filled(tenant):
    """A row of every kind in Acme: a deployment that is delivered in dev, and all that it needs."""
    world = World(tenant, tenant.dev)
    world.enroll(1)
    world.request()
    world.work()
    staff = tenant.principal("alice").ref
    set_rate_override(actor=staff, organization=tenant.organization, expected_rev=None, agent_calls=100)
    return tenant


def text_of(answer) -> str:
    return answer.content.decode()


WITHOUT_AN_ACTION = {"approvals.approval": 400, "deployments.deployment": 422}
"""Pages whose POST is an action that a service takes, and the answer to one that names none."""
FOR_PLATFORM_STAFF = ("access.personaltoken", "access.user")
MODELS = sorted(m._meta.label_lower for m in admin.site._registry)


def admin_url(model, kind: str, *args: object) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{kind}", args=args)


@pytest.mark.parametrize("label", MODELS)
def test_lists_open_for_members_and_hold_what_each_may_open_and_nothing_of_another_tenant(filled, label):
    model = apps.get_model(label)
    url, rows = admin_url(model, "changelist"), list(model._default_manager.order_by("pk")[:40])
    assert rows
    for who in ("alice", "vera", "charlie"):
        client = browser(filled.people[who])
        lists = client.get(url)
        assert lists.status_code == 200
        shown = {str(row.pk) for row in rows if f"/{label.replace('.', '/')}/{row.pk}/change/" in text_of(lists)}
        opened = {str(row.pk): client.get(admin_url(model, "change", row.pk)).status_code for row in rows}
        assert {pk for pk, status in opened.items() if status == 200} == shown
        assert set(opened.values()) <= {200, 404}
        if who == "charlie":
            theirs = [filled.organization, filled.project, filled.dev, filled.staging, filled.prod]
            theirs += [person for name, person in filled.people.items() if name != "charlie"]
            for page in (lists, client.get(url, {"q": "e"}), client.get(url, {"q": "orders"})):
                assert page.status_code == 200
                assert [str(each) for each in theirs if str(each.pk) in text_of(page)] == []
                assert "Acme" not in text_of(page)
        elif who == "alice" and label not in FOR_PLATFORM_STAFF:
            assert shown


@pytest.mark.parametrize("kind", ["change", "history", "delete"])
def test_another_tenants_object_is_the_same_404_as_one_that_never_was(filled, kind):
    stranger = browser(filled.people["charlie"])
    for pk in (filled.dev.pk, "01890000-0000-7000-8000-000000000000"):
        answer = stranger.get(reverse(f"admin:tenancy_environment_{kind}", args=[pk]))
        assert answer.status_code == 404


def test_who_holds_no_role_is_refused_at_sign_in(db):
    answer = browser(make_person("nobody")).get("/admin/")
    assert (answer.status_code, answer["Location"].split("?")[0]) == (302, "/admin/login/")


EDITED_BY_FORMS = ("tenancy", "access", "agents", "auth")


@pytest.mark.parametrize("label", [m for m in MODELS if m.split(".")[0] not in EDITED_BY_FORMS])
def test_nothing_that_services_write_can_be_edited_or_deleted_by_hand(filled, label):
    model = apps.get_model(label)
    row, alice = model._default_manager.first(), browser(filled.people["alice"])
    before = model._default_manager.filter(pk=row.pk).values().get()
    assert alice.get(admin_url(model, "changelist")).status_code == 200
    changed = alice.post(admin_url(model, "change", row.pk), {"status": "approved", "spec": "x", "_save": "1"})
    assert changed.status_code == WITHOUT_AN_ACTION.get(label, 403)
    assert alice.post(admin_url(model, "delete", row.pk), {"post": "yes"}).status_code == 403
    selected = {"action": "delete_selected", "_selected_action": [str(row.pk)]}
    assert alice.post(admin_url(model, "changelist"), selected).status_code == 200
    assert model._default_manager.filter(pk=row.pk).values().get() == before


def test_projects_and_environments_are_made_renamed_and_deleted_through_the_services(tenant):
    alice = browser(tenant.people["alice"])
    made = alice.post(
        "/admin/tenancy/project/add/", {"organization": str(tenant.organization.pk), "name": "New", "slug": ""}
    )
    assert made.status_code == 302
    project = Project.objects.get(name="New")
    assert AuditEvent.objects.filter(action="project.created", target=f"project:{project.pk}").count() == 1
    url = reverse("admin:tenancy_project_change", args=[project.pk])
    alice.post(url, {"name": "Renamed", "slug": project.slug})
    project.refresh_from_db()
    assert project.name == "Renamed"
    alice.post(reverse("admin:tenancy_project_delete", args=[project.pk]), {"confirm": project.slug})
    assert not Project.objects.alive().filter(pk=project.pk).exists()


@pytest.mark.parametrize("who", ["bob", "vera", "charlie"])
def test_who_does_not_manage_changes_no_settings(tenant, who):
    client = browser(tenant.people[who])
    url = reverse("admin:tenancy_environment_change", args=[tenant.dev.pk])
    client.post(url, {"name": "Mine", "slug": "dev", "max_in_flight_deployments": 9})
    client.post(reverse("admin:tenancy_environment_delete", args=[tenant.dev.pk]), {"force": "true"})
    fresh = Environment.objects.get(pk=tenant.dev.pk)
    assert (fresh.name, fresh.deleted_at) == ("dev", None)


def test_a_refusal_is_recorded_once_an_hour_and_what_is_invisible_in_the_systems_chain(tenant):
    vera, charlie = (browser(tenant.people[who]) for who in ("vera", "charlie"))
    dev, theirs = f"environment:{tenant.dev.pk}", str(tenant.people["charlie"].pk)
    url = {
        name: reverse(f"admin:tenancy_environment_{name}", args=[tenant.dev.pk])
        for name in ("change", "delete", "history")
    }
    for _ in range(2):
        assert vera.post(url["change"], {"name": "Mine"}).status_code == 403
        assert vera.post(url["delete"], {"confirm": "dev"}).status_code == 403
        assert vera.get(url["history"]).status_code == 403
        assert vera.post(reverse("admin:tenancy_environment_add"), {"name": "Mine"}).status_code == 403
        assert charlie.post(url["delete"], {"confirm": "dev"}).status_code == 404
        assert charlie.get(url["change"].replace(str(tenant.dev.pk), "nonsense")).status_code == 404
    here = AuditEvent.objects.filter(outcome="denied", organization_id=tenant.organization.pk)
    assert sorted(here.values_list("action", "target")) == [
        ("console.change", dev),
        ("console.delete", dev),
        ("console.history", dev),
    ]
    assert all(str(tenant.people["vera"].pk) in event.actor for event in here)
    elsewhere = AuditEvent.objects.filter(outcome="denied", organization_id=None)
    assert sorted((event.action, event.target, theirs in event.actor) for event in elsewhere) == [
        ("console.add", "environment:any", False),
        ("console.view", "environment:any", True),
    ]


def test_a_weaker_policy_is_judged_by_the_service(tenant):
    alice = browser(tenant.people["alice"])
    url = reverse("admin:tenancy_environment_change", args=[tenant.prod.pk])
    answer = alice.post(
        url, {"name": "prod", "slug": "prod", "max_in_flight_deployments": 4, "policy_required_approvals": 2}
    )
    assert b"dev only" in answer.content
    assert Environment.objects.get(pk=tenant.prod.pk).policy["prevent_self_approval"] is True


def test_rows_are_not_listed_past_their_lists(tenant):
    """Django's endpoint for fields with autocomplete would list them without an audit event; no form has such a field."""
    query = {"term": "a", "app_label": "access", "model_name": "membership", "field_name": "organization"}
    for person in (make_person("root", is_superuser=True), tenant.people["alice"]):
        assert browser(person).get("/admin/autocomplete/", query).status_code == 404


def test_a_look_by_platform_staff_is_on_record(tenant):
    staff = browser(make_person("root", is_superuser=True))
    assert staff.get(reverse("admin:tenancy_organization_change", args=[tenant.organization.pk])).status_code == 200
    assert AuditEvent.objects.filter(action="staff.viewed", organization_id=tenant.organization.pk).count() == 1
    assert Organization.objects.count() == 2


def test_a_look_by_platform_staff_at_the_deployments_of_all_tenants_is_on_record(tenant):
    staff = browser(make_person("root", is_superuser=True))
    for _ in range(2):
        assert staff.get("/admin/").status_code == 200
    assert browser(tenant.people["alice"]).get("/admin/").status_code == 200
    viewed = AuditEvent.objects.filter(action="staff.viewed")
    assert list(viewed.values_list("target", "organization_id")) == [("inbox", None)]


def test_sign_in_is_limited_and_next_stays_here(tenant, one_window):
    client = Client()
    good = client.post(
        "/admin/login/?next=https://evil.example/", {"username": "ALICE@example.com", "password": PASSWORD}
    )
    assert good.status_code == 302
    assert "evil" not in good["Location"]
    statuses = [
        Client().post("/admin/login/", {"username": "bob@example.com", "password": "wrong"}).status_code
        for _ in range(14)
    ]
    assert statuses[0] == 200
    assert statuses[-1] == 429


def test_pages_carry_the_headers_that_keep_them_safe(tenant):
    answer = browser(tenant.people["alice"]).get("/admin/")
    policy = answer["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer["X-Frame-Options"] == "DENY"


def test_an_invitation_from_the_admin_shows_its_link_once(tenant):
    alice = browser(tenant.people["alice"])
    answer = alice.post(
        "/admin/access/membership/add/",
        {"organization": str(tenant.organization.pk), "project": "", "email": "new@example.com", "role": "viewer"},
        follow=True,
    )
    assert b"/auth/invitations/" in answer.content
    assert Membership.objects.get(email="new@example.com").status == "invited"
    assert Job.objects.count() == 0
