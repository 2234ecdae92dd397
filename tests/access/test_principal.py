"""Who a caller is, and on whose behalf it acts. An organization key is made by hand here: it acts for its maker, as no person."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from apps.access.models import Membership, RoleGrant, User
from apps.access.policy import can
from apps.access.principals import SYSTEM, Principal, RoleCache, person_principal
from apps.access.roles import Permission, Role
from apps.access.selectors import environments_where, people_with
from apps.access.services import change_role, create_token, invite
from apps.agents.models import Agent, EnrollmentToken
from apps.agents.services import create_enrollment_token
from apps.approvals import services as approvals
from apps.approvals.models import Approval, PolicyWeakening
from apps.approvals.selectors import Deciders, approvals_to_decide
from apps.console.inbox import inbox_of
from apps.core import clock
from apps.core.errors import Conflict, Forbidden
from apps.core.ids import new_id
from apps.deployments.models import Deployment
from apps.deployments.services import cancel, create_bundle, request_deployment
from apps.deployments.services.requests import Selector
from apps.pipelines.models import PipelineDraft
from apps.pipelines.services import create_draft, promote_draft
from apps.signing.services import rotate
from apps.tenancy import services as tenancy
from apps.tenancy.models import Environment, Organization, Project
from apps.tenancy.scope import Scope
from tests.approvals.test_approvals import vote
from tests.flows.world import SPEC, config
from tests.support import Tenant, give_role, make_person

pytestmark = [pytest.mark.postgres, pytest.mark.django_db]


def key_of(maker: User, organization: Organization, role: Role = Role.ORG_ADMIN) -> Principal:
    return Principal(
        kind="organization_key",
        id=new_id(),
        name="nightly deploys",
        credential_id="byt_org_x",
        via="key",
        made_by=maker.pk,
        role_cache=RoleCache([(organization.pk, None, role)]),
    )


@pytest.fixture
def key(tenant: Tenant) -> Principal:
    """Made by Bob; may do what an org_admin may."""
    return key_of(tenant.people["bob"], tenant.organization)


def ask(tenant: Tenant, actor: Principal, environment: Environment) -> Approval:
    scope = tenant.scope(environment)
    Agent.objects.get_or_create(environment=environment, name="host")
    draft = create_draft(actor=actor, scope=scope, name="orders", spec=SPEC)
    version = promote_draft(actor=actor, scope=scope, draft_id=draft.pk).version
    bundle = create_bundle(actor=actor, scope=scope, version_id=version.pk, config=config("a:drop"))
    asked = request_deployment(actor=actor, scope=scope, bundle_id=bundle.pk, targets=Selector(everyone=True))
    found: Approval = Approval.objects.get(pk=asked.approval_id)
    return found


def test_a_person_acts_for_itself_a_key_for_its_maker_and_a_host_for_no_one(tenant: Tenant, key: Principal) -> None:
    bob = tenant.people["bob"]
    agent = Principal(kind="agent", id=uuid.uuid4(), name="host", via="key")
    enrolling = Principal(kind="enrollment", id=uuid.uuid4(), name="byt_enr_x", via="key")
    wanted = {person_principal(bob): bob.pk, key: bob.pk, agent: None, enrolling: None, SYSTEM: None}
    assert {each: each.acts_for for each in wanted} == wanted
    assert {each: each.ref.acts_for for each in wanted} == wanted
    assert [each.kind for each in wanted if each.is_person or each.ref.is_person] == ["person"]
    assert str(key.ref) == f"organization_key:{key.id}"


def test_a_key_of_platform_staff_is_not_platform_staff(tenant: Tenant) -> None:
    key = key_of(make_person("root", is_superuser=True), tenant.organization, Role.VIEWER)
    assert not key.is_superuser
    assert not key.visibility.everything


def test_a_key_sees_and_may_do_what_its_role_gives_in_its_organization_alone(tenant: Tenant) -> None:
    key = key_of(tenant.people["bob"], tenant.organization, Role.OPERATOR)
    for environment in (tenant.dev, tenant.other_environment):
        PipelineDraft.objects.create(environment=environment, name="x", spec=SPEC)
    elsewhere = tenant.scope(tenant.other_environment)
    assert can(key, Permission.OPERATE_ENVIRONMENT, tenant.scope())
    assert not can(key, Permission.MANAGE_ENVIRONMENT, tenant.scope())
    assert not can(key, Permission.VIEW_ENVIRONMENT, elsewhere)
    assert [each.environment for each in PipelineDraft.objects.visible_to(key)] == [tenant.dev]
    assert list(Organization.objects.visible_to(key)) == [tenant.organization]
    assert set(environments_where(key, Permission.OPERATE_ENVIRONMENT)) == {tenant.dev, tenant.staging, tenant.prod}
    assert key.id not in set(people_with(Permission.OPERATE_ENVIRONMENT, tenant.scope()).values_list("pk", flat=True))


def test_a_caller_without_roles_sees_and_may_do_nothing(tenant: Tenant) -> None:
    for kind in ("agent", "enrollment", "organization_key"):
        who = Principal(kind=kind, id=tenant.people["alice"].pk, name="x", made_by=tenant.people["alice"].pk)
        assert not can(who, Permission.VIEW_ENVIRONMENT, tenant.scope())
        assert not Environment.objects.visible_to(who).exists()
        assert not Project.objects.visible_to(who).exists()
        assert not Membership.objects.visible_to(who).exists()


def test_which_members_a_caller_sees(tenant: Tenant) -> None:
    pia, root = make_person("pia"), make_person("root", is_superuser=True)
    on_project = give_role(pia, Role.PROJECT_ADMIN, tenant.organization, tenant.project)
    of_organization = set(Membership.objects.filter(organization=tenant.organization, project__isnull=True))
    elsewhere = set(Membership.objects.filter(organization=tenant.other_organization))

    def seen(user: User) -> set[Membership]:
        return set(Membership.objects.visible_to(person_principal(user)))

    assert len(of_organization) == 4
    assert seen(tenant.people["vera"]) == of_organization | {on_project}
    assert seen(pia) == {on_project}
    assert seen(tenant.people["charlie"]) == elsewhere
    assert seen(root) == of_organization | elsewhere | {on_project}
    Organization.objects.filter(pk=tenant.other_organization.pk).update(deleted_at=clock.now())
    assert seen(root) == of_organization | {on_project}


def only_people(tenant: Tenant, key: Principal) -> dict[str, Callable[[], Any]]:
    """What a person must do itself, tried by a key whose role would allow it."""
    scope = tenant.scope(tenant.staging)
    approval = ask(tenant, tenant.principal("carol"), tenant.staging)
    vera = Membership.objects.get(organization=tenant.organization, user=tenant.people["vera"])
    decision = {"actor": key, "scope": scope, "approval_id": approval.pk}
    shown = approvals.current_facts(approval).shown_digest
    return {
        "approve": lambda: approvals.decide(**decision, decision="approve", shown_digest=shown),
        "deny": lambda: approvals.decide(**decision, decision="deny", comment="x", shown_digest=shown),
        "revoke": lambda: approvals.revoke(**decision, comment="x"),
        "invite": lambda: invite(actor=key, scope=Scope(scope.organization), email="new@example.com", role="viewer"),
        "change a role": lambda: change_role(
            actor=key, scope=Scope(scope.organization), member_id=vera.pk, role=Role.ORG_ADMIN
        ),
        "personal token": lambda: create_token(actor=key, name="x"),
        "enrollment token": lambda: create_enrollment_token(actor=key, scope=scope),
        "rotate": lambda: rotate(actor=key, scope=scope),
        "new organization": lambda: tenancy.create_organization(actor=key.ref, name="Third"),
        "more upgrades": lambda: tenancy.update_node(actor=key.ref, node=tenant.staging, agent_upgrade_percent=50),
    }


@pytest.mark.parametrize(
    "act",
    [
        "approve",
        "deny",
        "revoke",
        "invite",
        "change a role",
        "personal token",
        "enrollment token",
        "rotate",
        "new organization",
        "more upgrades",
    ],
)
def test_what_needs_a_person_refuses_a_key_whatever_its_role(tenant: Tenant, key: Principal, act: str) -> None:
    tries = only_people(tenant, key)
    with pytest.raises(Forbidden) as refused:
        tries[act]()
    assert refused.value.code == "person_required"
    assert not Organization.objects.filter(name="Third").exists()


def test_an_operators_command_may_do_what_needs_a_person(tenant: Tenant) -> None:
    rotated = rotate(actor=SYSTEM, scope=Scope(tenant.organization))
    assert rotated.status == "active"
    token, _ = create_enrollment_token(actor=SYSTEM, scope=tenant.scope())
    assert (token.created_by, token.created_by_name) == (None, "byteor")


def test_a_key_is_asked_for_no_decision(tenant: Tenant, key: Principal) -> None:
    approval = ask(tenant, tenant.principal("carol"), tenant.staging)
    assert not approvals_to_decide(key).exists()
    assert inbox_of(key).total == 0
    assert not Deciders(approval).may_approve(key)


def test_what_a_key_requests_counts_as_its_makers_request(tenant: Tenant, key: Principal) -> None:
    approval = ask(tenant, key, tenant.staging)
    deployment = Deployment.objects.get(pk=approval.deployment_id)
    bob = tenant.people["bob"]
    assert {approval.requested_by, deployment.requested_by} == {bob.pk}
    assert approval.requested_by_name == "nightly deploys"
    event = approval.events.get()
    assert (event.actor, event.actor_name) == (str(key.ref), "nightly deploys")
    assert bob not in Deciders(approval).eligible_people()
    assert not approvals_to_decide(person_principal(bob)).exists()
    for word in ("approve", "deny"):
        answer = vote(tenant, "bob", approval, word, comment="x")
        assert (answer.status_code, answer.json()["code"]) == (403, "self_approval")
    assert vote(tenant, "carol", approval).json()["status"] == "approved"


def test_a_key_needs_as_many_others_as_its_maker_would(tenant: Tenant, key: Principal) -> None:
    Membership.objects.filter(user=tenant.people["carol"]).delete()
    for actor in (key, tenant.principal("bob")):
        with pytest.raises(Conflict) as refused:
            ask(tenant, actor, tenant.prod)
        assert refused.value.code == "no_eligible_reviewer"
    other = key_of(make_person("dave"), tenant.organization)
    assert ask(tenant, other, tenant.prod).status == "pending"


def test_who_depends_on_the_maker_can_not_approve_what_the_key_requests(tenant: Tenant, key: Principal) -> None:
    vera, bob = tenant.people["vera"], tenant.people["bob"]
    give_role(vera, Role.OPERATOR, tenant.organization, tenant.project)
    RoleGrant.objects.create(
        organization=tenant.organization, project=tenant.project, user=vera, role=Role.OPERATOR, granted_by=bob.pk
    )
    answer = vote(tenant, "vera", ask(tenant, key, tenant.staging))
    assert (answer.status_code, answer.json()["code"]) == (409, "reviewer_recently_added")


def test_a_policy_that_a_key_weakens_was_weakened_by_its_maker(tenant: Tenant, key: Principal) -> None:
    waiting = ask(tenant, tenant.principal("carol"), tenant.staging)
    tenancy.update_node(
        actor=key.ref, node=tenant.staging, policy={**tenant.staging.policy, "approval_window_hours": 48}
    )
    assert PolicyWeakening.objects.get().user_id == tenant.people["bob"].pk
    assert vote(tenant, "bob", waiting).json()["code"] == "policy_recently_weakened"
    for actor in (key, tenant.principal("bob")):
        with pytest.raises(Conflict) as refused:
            ask(tenant, actor, tenant.staging)
        assert refused.value.code == "policy_recently_weakened"
    assert ask(tenant, tenant.principal("alice"), tenant.staging).status == "pending"


def test_a_policy_that_the_maker_weakened_stops_the_key(tenant: Tenant, key: Principal) -> None:
    PolicyWeakening.objects.create(environment=tenant.staging, user_id=tenant.people["bob"].pk)
    with pytest.raises(Conflict) as refused:
        ask(tenant, key, tenant.staging)
    assert refused.value.code == "policy_recently_weakened"


def test_a_pending_request_of_a_key_is_withdrawn_by_its_maker_or_the_key_and_by_no_other(
    tenant: Tenant, key: Principal
) -> None:
    scope = tenant.scope(tenant.staging)
    first, second = (
        ask(tenant, key, tenant.staging),
        ask(tenant, key_of(tenant.people["bob"], tenant.organization), tenant.dev),
    )
    for other in (tenant.principal("carol"), key_of(tenant.people["carol"], tenant.organization)):
        with pytest.raises(Forbidden):
            cancel(actor=other, scope=scope, deployment_id=first.deployment_id)
    assert second.status == "approved"
    assert cancel(actor=key, scope=scope, deployment_id=first.deployment_id).status == "denied"
    again = ask(tenant, key, tenant.staging)
    withdrawn = approvals.revoke(actor=tenant.principal("bob"), scope=scope, approval_id=again.pk)
    assert withdrawn.status == "revoked"


def test_the_roles_of_a_principal_are_read_once_and_anew_when_fresh(tenant: Tenant) -> None:
    alice = tenant.principal("alice")
    with CaptureQueriesContext(connection) as captured:
        for environment in (tenant.dev, tenant.staging):
            assert can(alice, Permission.OPERATE_ENVIRONMENT, tenant.scope(environment))
        assert environments_where(alice, Permission.OPERATE_ENVIRONMENT)
        assert list(Environment.objects.visible_to(alice))
    assert len([q for q in captured if "access_membership" in q["sql"]]) == 1
    Membership.objects.filter(user=tenant.people["alice"]).delete()
    assert can(alice, Permission.OPERATE_ENVIRONMENT, tenant.scope())
    assert not can(alice.fresh(), Permission.OPERATE_ENVIRONMENT, tenant.scope())


def test_a_key_keeps_the_role_that_it_was_given(tenant: Tenant, key: Principal) -> None:
    assert can(key.fresh(), Permission.MANAGE_ORG_MEMBERSHIPS, Scope(tenant.organization))


def test_a_person_without_a_name_whose_address_is_long_can_do_what_others_can(tenant: Tenant) -> None:
    """What people do is stored with their name, which is then their address, in up to 200 characters."""
    for name in ("alice", "bob", "carol"):
        person = tenant.people[name]
        person.name, person.email = "", f"{name}{'x' * 200}@example.com"
        person.save()
    approval = ask(tenant, person_principal(tenant.people["bob"]), tenant.staging)
    assert vote(tenant, "carol", approval).status_code == 200
    bob, staging = tenant.caller("bob"), tenant.path(tenant.staging)
    assert bob.post(f"{staging}/drafts", {"name": "orders", "spec": ""}).status_code == 201
    token = bob.post(f"{staging}/enrollment-tokens", {"name": "rack 7"})
    assert token.status_code == 201
    assert EnrollmentToken.objects.get(pk=token.json()["id"]).created_by_name == tenant.people["bob"].email[:200]
    assert bob.post(f"{staging}/approvals/{approval.pk}/revoke", {"comment": "no"}).status_code == 200
    members = tenant.caller("alice").post(
        f"/orgs/{tenant.organization.pk}/members", {"email": "dora@example.com", "role": "viewer"}
    )
    assert members.status_code == 201
