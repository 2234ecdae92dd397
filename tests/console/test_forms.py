"""The console's forms: what is refused keeps what was typed, no user undoes another user's change, and deleting states what ends."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from apps.access.models import Membership
from apps.access.roles import Role
from apps.agents.models import Agent, EnrollmentToken
from apps.approvals.models import PolicyWeakening
from apps.audit.models import AuditEvent
from apps.core import clock
from apps.tenancy.models import Environment, Organization, Project
from apps.tenancy.services import update_node
from tests.deployments.world import World
from tests.support import Tenant, give_role, make_person

pytestmark = pytest.mark.django_db


def browser(user: Any) -> Client:
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def alice(tenant: Tenant) -> Client:
    return browser(tenant.people["alice"])


@pytest.fixture
def pia(tenant: Tenant) -> Client:
    """Administers the project, not the organization."""
    user = make_person("pia")
    give_role(user, Role.PROJECT_ADMIN, tenant.organization, tenant.project)
    return browser(user)


def change_url(row: Any) -> str:
    return reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_change", args=[row.pk])


def delete_url(row: Any) -> str:
    return reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_delete", args=[row.pk])


def fields_of(page: str) -> dict[str, str]:
    """What a browser would send of the form on a page, as it was loaded."""
    found = {}
    for tag in re.findall(r"<input[^>]*>", page):
        name, value = re.search(r'name="([^"]+)"', tag), re.search(r'value="([^"]*)"', tag)
        if name is None or name[1].startswith(("csrf", "_")):
            continue
        if 'type="checkbox"' in tag:
            if "checked" in tag:
                found[name[1]] = "on"
        elif 'type="submit"' not in tag:
            found[name[1]] = value[1] if value else ""
    return found


def opened(client: Client, row: Any) -> dict[str, str]:
    answer = client.get(change_url(row))
    assert answer.status_code == 200
    return fields_of(answer.content.decode())


def text_of(answer: Any) -> str:
    return str(answer.content.decode())


def test_a_stale_form_does_not_undo_another_admins_change_and_blames_no_user(
    tenant: Tenant, alice: Client, pia: Client
):
    mine = opened(alice, tenant.staging)
    theirs = opened(pia, tenant.staging)
    assert pia.post(change_url(tenant.staging), {**theirs, "policy_required_approvals": "2"}).status_code == 302
    refused = alice.post(change_url(tenant.staging), {**mine, "name": "Renamed", "policy_required_approvals": "1"})
    assert refused.status_code == 412
    page = text_of(refused)
    assert "Another user changed this" in page
    assert "Stored now: 2." in page
    assert 'value="Renamed"' in page
    stored = Environment.objects.get(pk=tenant.staging.pk)
    assert (stored.name, stored.policy["required_approvals"]) == ("staging", 2)
    assert not PolicyWeakening.objects.exists()
    # what is shown now can be saved: it knows what it replaces
    again = fields_of(page)
    assert alice.post(change_url(tenant.staging), {**again, "policy_required_approvals": "2"}).status_code == 302
    stored.refresh_from_db()
    assert (stored.name, stored.policy["required_approvals"]) == ("Renamed", 2)
    assert not PolicyWeakening.objects.exists()


def test_only_what_was_edited_is_written(tenant: Tenant, alice: Client):
    form = opened(alice, tenant.prod)
    assert alice.post(change_url(tenant.prod), {**form, "name": "Production"}).status_code == 302
    event = AuditEvent.objects.get(action="environment.updated")
    assert event.details["after"] == {"name": "Production"}


def test_an_unedited_form_reports_that_nothing_was_changed(tenant: Tenant, alice: Client):
    answer = alice.post(change_url(tenant.prod), opened(alice, tenant.prod), follow=True)
    assert "No changes to save" in text_of(answer)
    assert "changed successfully" not in text_of(answer)
    assert not AuditEvent.objects.filter(action="environment.updated").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "\u200b"),
        ("slug", ""),
        ("slug", "Not A Slug"),
        ("policy_required_approvals", ""),
        ("policy_required_approvals", "99"),
        ("policy_credential_ttl_hours", "many"),
        ("max_in_flight_deployments", "0"),
        ("max_in_flight_deployments", ""),
        ("retention_days_snapshot", "0"),
        ("enrollments_per_minute", "601"),
        ("agent_upgrade_percent", "101"),
    ],
)
def test_an_empty_or_wrong_value_is_refused_at_its_field_and_the_rest_stays(
    tenant: Tenant, alice: Client, field: str, value: str
):
    form = {**opened(alice, tenant.prod), "policy_approval_window_hours": "12", field: value}
    answer = alice.post(change_url(tenant.prod), form, follow=True)
    page = text_of(answer)
    assert "errorlist" in page
    assert re.search(rf'id="id_{field}"[^>]*aria-invalid="true"|aria-invalid="true"[^>]*id="id_{field}"', page)
    assert 'value="12"' in page
    assert "Constraint" not in page
    assert Environment.objects.get(pk=tenant.prod.pk).rev == tenant.prod.rev


def test_what_only_the_service_knows_is_refused_at_its_field_too(tenant: Tenant, alice: Client):
    form = {**opened(alice, tenant.prod), "name": "Kept", "policy_required_approvals": "9"}
    answer = alice.post(change_url(tenant.prod), form)
    assert answer.status_code == 422
    page = text_of(answer)
    assert "people can decide in this environment" in page
    assert 'value="Kept"' in page
    taken = alice.post(
        "/admin/tenancy/project/add/", {"organization": str(tenant.organization.pk), "name": "More", "slug": "orders"}
    )
    assert taken.status_code == 409
    assert "is already taken" in text_of(taken)
    assert 'value="More"' in text_of(taken)
    assert not Project.objects.filter(name="More").exists()


def test_a_new_environment_gets_its_postures_defaults_where_the_form_states_them(tenant: Tenant, alice: Client):
    page = text_of(alice.get("/admin/tenancy/environment/add/"))
    form = {**fields_of(page), "project": str(tenant.project.pk), "name": "Späť 東京", "posture": "prod"}
    assert alice.post("/admin/tenancy/environment/add/", form).status_code == 302
    made = Environment.objects.get(name="Späť 東京")
    assert (made.slug, made.policy["required_approvals"], made.retention_days["snapshot"]) == ("spat", 2, 30)
    form |= {"name": "東京"}
    for wanted in ("environment", "environment-2"):
        assert alice.post("/admin/tenancy/environment/add/", form).status_code == 302
        assert Environment.objects.filter(slug=wanted, project=tenant.project).exists()
    without = alice.post("/admin/tenancy/environment/add/", {**form, "posture": ""})
    assert without.status_code == 200
    assert "errorlist" in text_of(without)


@pytest.mark.parametrize("name", ["\u200b", "a\nb", "a\u2028b", "a\u202eb", "\u3164", "\u0301", "   ", "a\x07b"])
def test_an_unreadable_name_is_refused_by_the_api_too(tenant: Tenant, name: str):
    answer = tenant.caller("alice").post(f"/orgs/{tenant.organization.pk}/projects", {"name": name})
    assert answer.status_code == 400
    assert answer.json()["code"] == "invalid_input"


def test_names_that_look_alike_are_stored_alike(tenant: Tenant):
    made = tenant.caller("alice").post(f"/orgs/{tenant.organization.pk}/projects", {"name": "Cafe\u0301"})
    assert made.json()["name"] == "Caf\u00e9"


def test_a_project_admin_is_offered_only_what_she_may_do(tenant: Tenant, pia: Client):
    page = text_of(pia.get("/admin/access/membership/add/"))
    assert "the whole organization" not in page
    assert "Acme / Orders" in page
    body = {"organization": str(tenant.organization.pk), "project": "", "email": "n@example.com", "role": "viewer"}
    refused = pia.post("/admin/access/membership/add/", body)
    assert refused.status_code == 200
    assert 'value="n@example.com"' in text_of(refused)
    assert not Membership.objects.filter(email="n@example.com").exists()
    assert pia.post("/admin/access/membership/add/", {**body, "project": str(tenant.project.pk)}).status_code == 302
    # no button where the role gives nothing
    assert "/admin/tenancy/project/add/" not in text_of(pia.get("/admin/tenancy/project/"))
    assert "/admin/tenancy/environment/add/" in text_of(pia.get("/admin/tenancy/environment/"))
    vera = browser(tenant.people["vera"])
    for path in ("tenancy/project", "tenancy/environment", "access/membership", "agents/enrollmenttoken"):
        assert f"/admin/{path}/add/" not in text_of(vera.get(f"/admin/{path}/"))


def test_a_stale_role_form_is_refused(tenant: Tenant, alice: Client):
    row = Membership.objects.get(user=tenant.people["vera"])
    form = opened(alice, row)
    path = f"/orgs/{tenant.organization.pk}/members/{row.pk}"
    assert tenant.caller("alice").put(path, {"role": "operator"}).status_code == 200
    answer = alice.post(change_url(row), {**form, "role": "viewer"})
    assert answer.status_code == 412
    row.refresh_from_db()
    assert row.role == "operator"


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_uses", "0"), ("max_uses", "1001"), ("labels", "[1]"), ("labels", '{"a": 1}'), ("labels", "{")],
)
def test_a_token_form_explains_what_is_wrong(tenant: Tenant, alice: Client, field: str, value: str):
    form = {"environment": str(tenant.dev.pk), "name": "hosts", "max_uses": "3", "labels": "{}", field: value}
    answer = alice.post("/admin/agents/enrollmenttoken/add/", form)
    page = text_of(answer)
    assert answer.status_code == 200
    assert "errorlist" in page
    assert "Constraint" not in page
    assert 'value="hosts"' in page
    assert not EnrollmentToken.objects.exists()


def test_deleting_an_environment_shows_what_falls_and_asks_for_its_slug(tenant: Tenant, alice: Client):
    world = World(tenant, tenant.staging)
    world.enroll(3)
    world.roll_out_approved()
    page = text_of(alice.get(delete_url(tenant.staging)))
    for words in ("3 agents", "1 deployment<", "1 config bundle<", "1 approval<"):
        assert words in page
    assert "runs now" in page
    assert 'name="confirm"' in page
    assert 'name="force"' not in page
    for confirm in ("", "Staging", "prod"):
        answer = alice.post(delete_url(tenant.staging), {"confirm": confirm, "force": "true"})
        assert answer.status_code == 422
        assert "Nothing was deleted." in text_of(answer)
    assert Environment.objects.get(pk=tenant.staging.pk).deleted_at is None
    done = alice.post(delete_url(tenant.staging), {"confirm": " staging "}, follow=True)
    assert "Staging is deleted." in text_of(done)
    assert not Environment.objects.alive().filter(pk=tenant.staging.pk).exists()


def test_deleting_what_has_something_in_flight_names_it_and_has_to_be_forced(tenant: Tenant, alice: Client):
    world = World(tenant, tenant.staging)
    world.enroll(1)
    made = world.request()
    for node in (tenant.staging, tenant.project, tenant.organization):
        page = text_of(alice.get(delete_url(node)))
        assert made in page
        assert 'name="force"' in page
        answer = alice.post(delete_url(node), {"confirm": node.slug})
        assert answer.status_code == 409
        assert made in text_of(answer)
    assert "3 environments" in text_of(alice.get(delete_url(tenant.project)))
    assert "1 project<" in text_of(alice.get(delete_url(tenant.organization)))
    answer = alice.post(delete_url(tenant.organization), {"confirm": "acme", "force": "true"})
    assert answer.status_code == 302
    assert not Organization.objects.alive().filter(pk=tenant.organization.pk).exists()


def test_what_is_deleted_already_is_not_counted(tenant: Tenant, alice: Client):
    alice.post(delete_url(tenant.dev), {"confirm": "dev"})
    assert "2 environments" in text_of(alice.get(delete_url(tenant.project)))


def test_deleting_something_small_explains_what_ends(tenant: Tenant, alice: Client):
    world = World(tenant, tenant.dev)
    [host] = world.enroll(1)
    agent = Agent.objects.get(pk=host.id)
    member = Membership.objects.get(user=tenant.people["vera"])
    token = EnrollmentToken.objects.get()
    for row, words in (
        (agent, "its key is revoked at once"),
        (member, "loses the role Viewer in Acme"),
        (token, "No agent can enroll with it any more"),
    ):
        page = text_of(alice.get(delete_url(row)))
        assert words in page
        assert "everything below it" not in page
        assert 'name="confirm"' not in page
        assert 'name="force"' not in page
    world.request(targets=[host])
    busy = text_of(alice.get(delete_url(agent)))
    assert 'name="force"' in busy
    assert alice.post(delete_url(agent), {}).status_code == 409
    for row in (agent, member, token):
        assert alice.post(delete_url(row), {"force": "true"}).status_code == 302
    assert not Agent.objects.filter(pk=agent.pk).exists()
    assert not Membership.objects.filter(pk=member.pk).exists()
    token.refresh_from_db()
    assert token.revoked_at is not None


def test_history_shows_the_audit_events_of_that_object_to_those_who_may_read_them(
    tenant: Tenant, alice: Client, pia: Client
):
    update_node(actor=tenant.principal("alice").ref, node=tenant.staging, name="Stage")
    url = reverse("admin:tenancy_environment_history", args=[tenant.staging.pk])
    page = text_of(alice.get(url))
    assert "environment.updated" in page
    assert "environment.created" in page
    assert "Alice" in page
    assert url in text_of(alice.get(change_url(tenant.staging)))
    assert url not in text_of(pia.get(change_url(tenant.staging)))
    assert pia.get(url).status_code == 403
    # of every kind, the events are found by the name that they are recorded under
    world = World(tenant, tenant.staging)
    [host] = world.enroll(1)
    made = world.request()
    events = AuditEvent.objects.filter(organization_id=tenant.organization.pk)
    for label, pk, action in (
        ("agents_agent", host.id, "agent.enrolled"),
        ("agents_enrollmenttoken", EnrollmentToken.objects.get().pk, "enrollment_token.created"),
        ("deployments_deployment", made, "deployment.requested"),
        ("deployments_configbundle", world.row(made).bundle_id, "bundle.created"),
        ("approvals_approval", world.row(made).approval_id, "approval.requested"),
        ("pipelines_pipelineversion", world.row(made).version_id, ".promoted"),
    ):
        assert events.filter(target__endswith=str(pk), action__endswith=action).exists(), label
        assert action in text_of(alice.get(reverse(f"admin:{label}_history", args=[pk]))), label


def test_no_page_of_an_app_shows_an_empty_inbox_when_something_waits(tenant: Tenant):
    world = World(tenant, tenant.staging)
    world.enroll(1)
    world.request()
    carol = browser(tenant.people["carol"])
    for app in ("approvals", "deployments", "tenancy", "agents", "pipelines", "jobs", "audit", "access", "signing"):
        answer = carol.get(f"/admin/{app}/", follow=True)
        assert "Nothing waits" not in text_of(answer)
        assert f"/admin/{app}/" in text_of(answer)
        assert 'href="/admin/"' in text_of(answer)


def test_no_form_shows_the_name_of_a_constraint(tenant: Tenant, alice: Client):
    """A form that leaves the constraints to the service never shows one."""
    from django.contrib import admin

    from apps.console.base.forms import ServiceForm

    for each in admin.site._registry.values():
        assert issubclass(each.form, ServiceForm), each


def test_the_times_on_every_page_carry_their_zone(tenant: Tenant, alice: Client):
    world = World(tenant, tenant.dev)
    [host] = world.enroll(1)
    host.heartbeat()
    agent = Agent.objects.get(pk=host.id)
    page = text_of(alice.get(change_url(agent)))
    moment = agent.created_at
    assert f"{moment:%Y-%m-%d %H:%M:%S} UTC" in page
    assert not re.search(r"\d\d? [ap]\.m\.", page)
    assert clock.now().tzinfo is not None
    assert " UTC" in text_of(alice.get("/admin/agents/agent/"))


def test_the_form_of_an_environment_states_what_each_limit_means_and_its_range(tenant: Tenant, alice: Client) -> None:
    page = text_of(alice.get(change_url(tenant.dev)))
    for words in (
        "Deployments that may be in progress at the same time. From 1 to 1000.",
        "Hosts that may enroll with a valid token. From 1 to 600.",
        "Share of the agents that may install the agent program of this control plane. From 0 to 100.",
    ):
        assert words in page
