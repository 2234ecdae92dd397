"""Every screen of the admin shows what the roles give, and writes nothing but through the services."""

from __future__ import annotations

import pytest
from django.contrib import admin
from django.test import Client
from django.urls import reverse

from apps.access.models import Membership
from apps.audit.models import AuditEvent
from apps.console.setup.demo import config_with
from apps.deployments.services import create_bundle
from apps.jobs.models import Job
from apps.pipelines.services import create_draft, promote_draft
from apps.tenancy.models import Environment, Organization, Project
from tests.flows.world import SPEC
from tests.support import PASSWORD, make_person

pytestmark = pytest.mark.django_db


def browser(user) -> Client:
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def filled(tenant):
    """A row of most kinds in Acme's dev."""
    alice, scope = tenant.principal("alice"), tenant.scope()
    draft = create_draft(actor=alice, scope=scope, name="orders", spec=SPEC)
    version = promote_draft(actor=alice, scope=scope, draft_id=draft.pk).version
    config = {"stages": {"redact": config_with(["a:drop"])["stages"]["redact"]}}
    create_bundle(actor=alice, scope=scope, version_id=version.pk, config=config)
    tenant.caller("alice").post(f"{tenant.path()}/enrollment-tokens", {})
    return tenant


MODELS = sorted(m._meta.label_lower for m in admin.site._registry)


@pytest.mark.parametrize("label", MODELS)
def test_lists_open_for_members_and_hold_nothing_of_another_tenant(filled, label):
    model = next(m for m in admin.site._registry if m._meta.label_lower == label)
    url = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")
    for who in ("alice", "bob", "vera", "charlie"):
        answer = browser(filled.people[who]).get(url)
        assert answer.status_code in (200, 403)
    stranger = browser(filled.people["charlie"])
    for row in model._default_manager.all()[:20]:
        change = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_change", args=[row.pk])
        theirs = stranger.get(change).status_code
        if theirs == 200:
            text = str(row.__dict__)
            owned = [filled.other_organization.pk, filled.other_project.pk, filled.other_environment.pk]
            own_rows = [filled.people["charlie"].pk, *owned]
            assert any(str(pk) in text for pk in own_rows), f"charlie sees {label} {row}"
        else:
            assert theirs in (403, 404)


@pytest.mark.parametrize("kind", ["change", "history", "delete"])
def test_another_tenants_object_is_the_same_404_as_one_that_never_was(filled, kind):
    stranger = browser(filled.people["charlie"])
    for pk in (filled.dev.pk, "01890000-0000-7000-8000-000000000000"):
        answer = stranger.get(reverse(f"admin:tenancy_environment_{kind}", args=[pk]))
        assert answer.status_code == 404


def test_who_holds_no_role_gets_no_further_than_the_door(db):
    answer = browser(make_person("nobody")).get("/admin/")
    assert (answer.status_code, answer["Location"].split("?")[0]) == (302, "/admin/login/")


@pytest.mark.parametrize("label", [m for m in MODELS if m.split(".")[0] not in ("tenancy", "access", "agents", "auth")])
def test_nothing_in_the_rooms_can_be_edited_or_deleted_by_hand(filled, label):
    model = next(m for m in admin.site._registry if m._meta.label_lower == label)
    row = model._default_manager.first()
    prefix = f"admin:{model._meta.app_label}_{model._meta.model_name}"
    alice = browser(filled.people["alice"])
    assert alice.get(reverse(f"{prefix}_changelist")).status_code == 200
    if row is None:
        return
    before = model._default_manager.filter(pk=row.pk).values().get()
    answers = [
        alice.post(reverse(f"{prefix}_change", args=[row.pk]), {"status": "approved", "spec": "x", "_save": "1"}),
        alice.post(reverse(f"{prefix}_delete", args=[row.pk]), {"post": "yes"}),
    ]
    alice.post(reverse(f"{prefix}_changelist"), {"action": "delete_selected", "_selected_action": [str(row.pk)]})
    assert all(a.status_code in (302, 400, 403, 404, 409) for a in answers)
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
    alice.post(reverse("admin:tenancy_project_delete", args=[project.pk]), {})
    assert not Project.objects.alive().filter(pk=project.pk).exists()


@pytest.mark.parametrize("who", ["bob", "vera", "charlie"])
def test_who_does_not_manage_changes_no_settings(tenant, who):
    client = browser(tenant.people[who])
    url = reverse("admin:tenancy_environment_change", args=[tenant.dev.pk])
    client.post(url, {"name": "Mine", "slug": "dev", "max_in_flight_deployments": 9})
    client.post(reverse("admin:tenancy_environment_delete", args=[tenant.dev.pk]), {"force": "true"})
    fresh = Environment.objects.get(pk=tenant.dev.pk)
    assert (fresh.name, fresh.deleted_at) == ("dev", None)


def test_a_weaker_policy_is_judged_by_the_service(tenant):
    alice = browser(tenant.people["alice"])
    url = reverse("admin:tenancy_environment_change", args=[tenant.prod.pk])
    body = {"name": "prod", "slug": "prod", "max_in_flight_deployments": 4, "retention_days": "{}"}
    answer = alice.post(url, {**body, "policy": '{"prevent_self_approval": false}'}, follow=True)
    assert b"dev only" in answer.content
    assert Environment.objects.get(pk=tenant.prod.pk).policy["prevent_self_approval"] is True


def test_a_look_by_platform_staff_is_on_record(tenant):
    staff = browser(make_person("root", is_superuser=True))
    assert staff.get(reverse("admin:tenancy_organization_change", args=[tenant.organization.pk])).status_code == 200
    assert AuditEvent.objects.filter(action="staff.viewed", organization_id=tenant.organization.pk).count() == 1
    assert Organization.objects.count() == 2


def test_sign_in_is_limited_and_next_stays_here(tenant):
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
