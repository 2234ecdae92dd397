"""Tokens, decisions of `can`, members and resets, down to each stored and recorded field."""

from __future__ import annotations

import datetime as dt
import hashlib
import re
import uuid
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import time_machine
from django.db import connection
from django.test.utils import CaptureQueriesContext

from apps.access import registry, services, tokens
from apps.access.models import Membership, PasswordReset, PersonalToken, RoleGrant, User
from apps.access.policy import Allowed, Denied, can, refuse_unknown, require
from apps.access.principals import SYSTEM, Principal, RoleCache, person_principal
from apps.access.roles import Permission, Role
from apps.access.selectors import (
    environments_where,
    may_on_some_organization,
    may_on_some_project,
    organizations_where,
    people_who_may,
    people_with,
    projects_where,
    roles_at,
)
from apps.access.services import members
from apps.access.services.grants import begin_grant
from apps.access.services.resets import make_reset_link, open_reset, reset_password
from apps.audit.models import AuditEvent
from apps.core import clock
from apps.core.errors import Conflict, Forbidden, NotFound, Unauthenticated
from apps.core.ids import new_id
from apps.tenancy import services as tenancy
from apps.tenancy.models import Organization, Project
from apps.tenancy.scope import Scope
from tests.support import Tenant, give_role, make_person

pytestmark = pytest.mark.django_db

START = dt.datetime(2026, 5, 4, 10, 0, tzinfo=dt.UTC)
P = Permission


# --- tokens ---

DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def with_checksum(head: str) -> str:
    number, text = zlib.crc32(head.encode()), ""
    for _ in range(6):
        number, digit = divmod(number, 62)
        text = DIGITS[digit] + text
    return head + text


@pytest.mark.parametrize("family", ["pat", "org", "enr", "agt"])
def test_a_token_is_its_family_43_digits_and_a_checksum(family: str) -> None:
    minted = tokens.mint(family)
    text = minted.text.reveal()
    head = text[:-6]
    assert text == with_checksum(head)
    assert (minted.prefix, len(head)) == (f"byt_{family}_", len(f"byt_{family}_") + 43)
    assert head.startswith(minted.prefix)
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert (minted.sha256, minted.public_id) == (digest, f"{family}_{digest[:12]}")
    assert tokens.parse(text) == tokens.ParsedToken(family, digest, minted.public_id)
    assert tokens.mint(family).text.reveal() != text


def test_a_token_of_another_form_is_malformed() -> None:
    digits = "0" * 43
    assert tokens.parse(with_checksum(f"byt_pat_{digits}")).family == "pat"
    for text in (
        with_checksum(f"byt_xxx_{digits}"),
        with_checksum(f"byt_pat_{digits}0"),
        with_checksum(f"byt_pat_{digits[1:]}"),
        with_checksum(f"byt_pat_{digits}") + "\n",
        "x" + with_checksum(f"byt_pat_{digits}"),
        f"byt_pat_{digits}000000",
        "",
    ):
        with pytest.raises(Unauthenticated) as refused:
            tokens.parse(text)
        assert refused.value.code == "malformed_token"
    with pytest.raises(ValueError, match="unknown token family 'abc'"):
        tokens.mint("abc")


# --- what a caller may do ---


def caller(*rows: tuple[uuid.UUID, uuid.UUID | None, Role]) -> Principal:
    return Principal("person", new_id(), "x", role_cache=RoleCache(rows))


def test_each_decision_names_its_role_or_its_reason(tenant: Tenant) -> None:
    org, project = tenant.organization.pk, tenant.project.pk
    here, on_project, on_org = tenant.scope(), Scope(tenant.organization, tenant.project), Scope(tenant.organization)
    elsewhere = tenant.other_organization.pk
    cases: list[tuple[Principal, Permission, Scope, Allowed | Denied]] = [
        (SYSTEM, P.MANAGE_ORG_MEMBERSHIPS, on_org, Allowed("system")),
        (caller((org, None, Role.ORG_ADMIN)), P.MANAGE_ENVIRONMENT, here, Allowed("org_admin")),
        (
            caller((org, None, Role.ORG_ADMIN), (org, project, Role.VIEWER)),
            P.OPERATE_ENVIRONMENT,
            here,
            Allowed("org_admin"),
        ),
        (caller((org, None, Role.VIEWER)), P.VIEW_ORG_SUMMARY, on_org, Allowed("viewer")),
        (caller((org, project, Role.VIEWER)), P.VIEW_ORG_SUMMARY, on_org, Allowed("project role")),
        (caller((elsewhere, None, Role.VIEWER)), P.VIEW_ORG_SUMMARY, on_org, Denied("no role in the organization")),
        (caller((org, None, Role.VIEWER)), P.VIEW_ORG, on_org, Allowed("viewer")),
        (caller((org, None, Role.VIEWER)), P.MANAGE_PROJECT, on_org, Denied("needs ManageProject", visible=True)),
        (caller((org, project, Role.PROJECT_ADMIN)), P.VIEW_ORG, on_org, Denied("needs ViewOrg", visible=True)),
        (caller((elsewhere, None, Role.ORG_ADMIN)), P.VIEW_ORG, on_org, Denied("needs ViewOrg")),
        (caller(), P.VIEW_ENVIRONMENT, here, Denied("no role on the project")),
        (caller((org, new_id(), Role.OPERATOR)), P.VIEW_ENVIRONMENT, here, Denied("no role on the project")),
        (caller((org, project, Role.OPERATOR)), P.OPERATE_ENVIRONMENT, here, Allowed("operator")),
        (
            caller((org, None, Role.OPERATOR), (org, project, Role.VIEWER)),
            P.OPERATE_ENVIRONMENT,
            here,
            Denied("viewer lacks OperateEnvironment", visible=True),
        ),
        (
            caller((org, None, Role.VIEWER), (org, project, Role.OPERATOR)),
            P.OPERATE_PROJECT,
            on_project,
            Allowed("operator"),
        ),
    ]
    for principal, permission, scope, expected in cases:
        found = can(principal, permission, scope)
        assert found == expected, (principal.roles, permission)
        assert bool(found) is isinstance(expected, Allowed)


def test_a_refusal_is_recorded_where_the_caller_may_know_of_the_object(tenant: Tenant) -> None:
    vera, scope = tenant.principal("vera"), tenant.scope()
    assert require(vera, P.VIEW_ENVIRONMENT, scope) == Allowed("viewer")
    with pytest.raises(Forbidden, match="OperateEnvironment"):
        require(vera, P.OPERATE_ENVIRONMENT, scope)
    charlie, missing = tenant.principal("charlie"), new_id()
    with pytest.raises(NotFound):
        require(charlie, P.VIEW_ENVIRONMENT, scope)
    refuse_unknown(tenant.principal("bob"), P.VIEW_PROJECT, tenant.organization.pk, missing)
    rows = [
        (e.organization_id, e.action, e.target, e.details, e.resource_scope)
        for e in AuditEvent.objects.filter(outcome="denied").order_by("pk")
    ]
    dev = f"environment:{tenant.dev.pk}"
    assert rows == [
        (
            tenant.organization.pk,
            "access.OperateEnvironment",
            dev,
            {"reason": "viewer lacks OperateEnvironment"},
            scope.as_dict(),
        ),
        (None, "access.ViewEnvironment", dev, {"reason": "no role on the project"}, scope.as_dict()),
        (
            None,
            "access.ViewProject",
            f"project:{missing}",
            {"reason": "unknown"},
            {"organization_id": str(tenant.organization.pk), "project_id": str(missing)},
        ),
    ]


def test_a_missing_and_an_invisible_object_are_refused_with_the_same_queries(tenant: Tenant) -> None:
    first, one, other = (person_principal(make_person(name)) for name in ("dave", "erin", "finn"))
    scope = tenant.scope()

    def tables(refuse: Callable[[], object]) -> list[str]:
        with CaptureQueriesContext(connection) as captured, suppress(NotFound):
            refuse()
        return [table for q in captured for table in re.findall(r'(?:FROM|INTO|UPDATE) "(\w+)"', q["sql"])]

    tables(lambda: require(first, P.VIEW_ENVIRONMENT, scope))  # begins the chain
    known = tables(lambda: require(one, P.VIEW_ENVIRONMENT, scope))
    ids = tenant.organization.pk, tenant.project.pk, new_id()
    assert "access_membership" in known
    assert tables(lambda: refuse_unknown(other, P.VIEW_ENVIRONMENT, *ids)) == known


def test_where_a_role_counts_is_the_same_for_one_place_for_lists_and_for_people(tenant: Tenant) -> None:
    org, project = tenant.organization, tenant.project
    dave, erin, finn = (make_person(name) for name in ("dave", "erin", "finn"))
    give_role(dave, Role.OPERATOR, org)
    give_role(dave, Role.VIEWER, org, project)
    give_role(erin, Role.PROJECT_ADMIN, org, project)
    give_role(finn, Role.VIEWER, org)
    User.objects.filter(pk=finn.pk).update(is_active=False)
    people = [*tenant.people.values(), dave, erin, finn]
    for permission in (P.VIEW_ENVIRONMENT, P.OPERATE_ENVIRONMENT, P.MANAGE_ENVIRONMENT, P.MANAGE_ORG_MEMBERSHIPS):
        able = {p.pk for p in people if p.pk != finn.pk and can(person_principal(p), permission, tenant.scope())}
        assert set(people_with(permission, tenant.scope()).values_list("pk", flat=True)) == able
        pairs = {(tenant.dev.pk, person) for person in able}
        assert people_who_may(permission, [(tenant.dev, person.pk) for person in people]) == pairs
        for person in people:
            listed = environments_where(person_principal(person), permission).filter(pk=tenant.dev.pk).exists()
            assert listed is bool(can(person_principal(person), permission, tenant.scope())), (person, permission)
    on_org = set(people_with(P.MANAGE_ORG_MEMBERSHIPS, Scope(org)).values_list("pk", flat=True))
    assert on_org == {tenant.people["alice"].pk}
    assert people_who_may(P.VIEW_ENVIRONMENT, []) == set()
    d, e, c = (person_principal(p) for p in (dave, erin, tenant.people["charlie"]))
    assert roles_at(d, tenant.scope()) == (Role.OPERATOR, Role.VIEWER, True)
    assert roles_at(e, Scope(org)) == (None, None, True)
    assert roles_at(c, tenant.scope()) == (None, None, False)
    assert list(organizations_where(d, P.OPERATE_ENVIRONMENT)) == [org]
    assert list(organizations_where(e, P.VIEW_ORG)) == []
    assert not projects_where(d, P.OPERATE_PROJECT).filter(pk=project.pk).exists()
    assert list(projects_where(e, P.MANAGE_PROJECT)) == [project]
    assert may_on_some_organization(d, P.OPERATE_ENVIRONMENT)
    assert not may_on_some_organization(e, P.VIEW_ORG)
    assert may_on_some_project(e, P.MANAGE_PROJECT)
    assert not may_on_some_project(tenant.principal("vera"), P.OPERATE_PROJECT)


def test_what_a_principal_is(tenant: Tenant) -> None:
    org, project, vera = tenant.organization.pk, tenant.project.pk, tenant.people["vera"]
    person = person_principal(vera, via="token", credential_id="pat_1")
    assert (person.kind, person.id, person.name, person.via, person.credential_id) == (
        "person",
        vera.pk,
        str(vera),
        "token",
        "pat_1",
    )
    assert (str(person), person.is_authenticated, person.is_superuser) == (str(vera), True, False)
    assert (person.ref.kind, person.ref.id, person.ref.name) == ("person", str(vera.pk), str(vera))
    assert (SYSTEM.ref.id, SYSTEM.roles, str(SYSTEM)) == (None, (), "byteor")
    root = make_person("root", is_superuser=True)
    assert person_principal(root).is_superuser
    assert person_principal(root).visibility.everything
    root.is_active = False
    assert not person_principal(root).is_superuser
    seen = caller((org, None, Role.ORG_ADMIN), (tenant.other_organization.pk, project, Role.VIEWER)).visibility
    assert not seen.everything
    assert seen.organizations == {org, tenant.other_organization.pk}
    assert seen.whole_organizations == seen.administered == {org}
    assert seen.projects == {project}
    viewer = caller((org, None, Role.VIEWER)).visibility
    assert (viewer.administered, viewer.whole_organizations) == (frozenset(), {org})


# --- members ---


def invite(tenant: Tenant, email: str, role: str = "operator", scope: Scope | None = None) -> members.Invitation:
    return members.invite(
        actor=tenant.principal("alice"), scope=scope or Scope(tenant.organization), email=email, role=role
    )


def events(action: str) -> list[tuple[str, str, dict[str, Any]]]:
    rows = AuditEvent.objects.filter(action=action).order_by("pk")
    return [(row.actor_name, row.target, row.details) for row in rows]


def test_an_invitation_and_its_acceptance_are_stored_and_recorded(tenant: Tenant) -> None:
    alice = tenant.people["alice"]
    with time_machine.travel(START, tick=False):
        made = invite(tenant, " Dora@Example.com ", "viewer")
        again = invite(tenant, "dora@example.com", "operator")
    assert made.token.reveal() != again.token.reveal()
    row = Membership.objects.get(email="dora@example.com")
    assert (row.pk, row.status, row.role, row.rev) == (made.membership.pk, "invited", "operator", 2)
    assert (row.invited_by, row.user_id, row.project_id) == (alice.pk, None, None)
    assert row.invitation_expires_at == START + dt.timedelta(days=7)
    target = f"member:{row.pk}"
    assert events("member.invited") == [
        (str(alice), target, {"email": "dora@example.com", "role": role}) for role in ("viewer", "operator")
    ]
    last = START + dt.timedelta(days=7) - dt.timedelta(milliseconds=1)
    with time_machine.travel(last, tick=False):
        assert members.invitation_for(made.token.reveal()) is None
        found = members.invitation_for(again.token.reveal())
        assert found is not None
        assert (found.membership.pk, found.mailed) == (row.pk, False)
        user = members.accept_as_new_person(token=again.token.reveal(), encoded="encoded", name="D" * 300)
        assert members.invitation_for(again.token.reveal()) is None
    user.refresh_from_db()
    assert (user.email, user.name, user.password) == ("dora@example.com", "D" * 200, "encoded")
    assert (user.address_proved_at, user.origin_organization_id) == (None, tenant.organization.pk)
    row.refresh_from_db()
    assert (row.user_id, row.status, row.rev) == (user.pk, "active", 3)
    assert (row.invitation_sha256, row.mailed_sha256, row.invitation_expires_at) == (None, None, None)
    assert events("member.joined") == [(str(user), target, {"role": "operator"})]
    grant = RoleGrant.objects.get(user=user)
    assert (grant.organization_id, grant.project_id, grant.role) == (tenant.organization.pk, None, "operator")
    assert (grant.granted_by, grant.granted_by_name, grant.granted_at) == (alice.pk, str(alice), last)
    assert grant.ended_at is None


def test_an_invitation_ends_exactly_after_seven_days(tenant: Tenant) -> None:
    with time_machine.travel(START, tick=False):
        made = invite(tenant, "dora@example.com")
    with time_machine.travel(START + dt.timedelta(days=7), tick=False):
        assert members.invitation_for(made.token.reveal()) is None
        with pytest.raises(NotFound):
            members.accept_as_new_person(token=made.token.reveal(), encoded="x")


def test_the_mailed_link_proves_the_address(tenant: Tenant) -> None:
    made = invite(tenant, "dora@example.com")
    Membership.objects.filter(pk=made.membership.pk).update(mailed_sha256=hashlib.sha256(b"mailed").hexdigest())
    found = members.invitation_for("mailed")
    assert found is not None
    assert found.mailed
    with time_machine.travel(START, tick=False):
        Membership.objects.filter(pk=made.membership.pk).update(invitation_expires_at=START + dt.timedelta(days=1))
        user = members.accept_as_new_person(token="mailed", encoded="x", name="Dora")
    user.refresh_from_db()
    assert (user.address_proved_at, user.origin_organization_id) == (START, None)


def test_a_changed_role_ends_one_grant_and_begins_the_next_at_that_moment(tenant: Tenant) -> None:
    row = Membership.objects.get(user=tenant.people["vera"])
    alice, scope = tenant.principal("alice"), Scope(tenant.organization)
    for at, role in ((START, "operator"), (START + dt.timedelta(hours=1), "viewer")):
        with time_machine.travel(at, tick=False):
            done = members.change_role(actor=alice, scope=scope, member_id=row.pk, role=role, expected_rev=row.rev)
        assert (done.role, done.rev) == (role, row.rev + 1)
        row.refresh_from_db()
        assert (row.role, row.rev) == (role, done.rev)
    grants = RoleGrant.objects.filter(user=tenant.people["vera"]).order_by("pk")
    found = [(g.role, g.granted_by, g.granted_at, g.ended_at) for g in grants]
    later = START + dt.timedelta(hours=1)
    assert found[-2:] == [("operator", alice.id, START, later), ("viewer", alice.id, later, None)]
    assert [each[3] for each in found[:-2]] == [START] * (len(found) - 2)
    assert events("member.role_changed") == [
        ("Alice", f"member:{row.pk}", {"from": "viewer", "to": "operator"}),
        ("Alice", f"member:{row.pk}", {"from": "operator", "to": "viewer"}),
    ]


def test_a_role_changed_before_it_is_accepted_is_granted_by_who_changed_it(tenant: Tenant) -> None:
    made = invite(tenant, "dora@example.com", "viewer")
    ada = make_person("ada")
    give_role(ada, Role.ORG_ADMIN, tenant.organization)
    members.change_role(
        actor=person_principal(ada), scope=Scope(tenant.organization), member_id=made.membership.pk, role="operator"
    )
    user = members.accept_as_new_person(token=made.token.reveal(), encoded="x")
    grant = RoleGrant.objects.get(user=user)
    assert (grant.role, grant.granted_by) == ("operator", ada.pk)


def test_a_removed_member_leaves_an_ended_grant_and_a_record(tenant: Tenant) -> None:
    row = Membership.objects.get(user=tenant.people["vera"])
    with time_machine.travel(START, tick=False):
        members.remove_member(actor=tenant.principal("alice"), scope=Scope(tenant.organization), member_id=row.pk)
    assert not Membership.objects.filter(user=tenant.people["vera"]).exists()
    assert {g.ended_at for g in RoleGrant.objects.filter(user=tenant.people["vera"])} == {START}
    assert events("member.removed") == [("Alice", f"member:{row.pk}", {"email": "vera@example.com", "role": "viewer"})]


def test_a_role_from_before_the_history_was_kept_is_in_it_once_it_ends(tenant: Tenant) -> None:
    row = Membership.objects.get(user=tenant.people["vera"])
    assert not RoleGrant.objects.filter(user=tenant.people["vera"]).exists()
    at = row.created_at + dt.timedelta(hours=1)
    with time_machine.travel(at, tick=False):
        members.remove_member(actor=tenant.principal("alice"), scope=Scope(tenant.organization), member_id=row.pk)
    grant = RoleGrant.objects.get(user=tenant.people["vera"])
    assert (grant.organization_id, grant.project_id, grant.role) == (tenant.organization.pk, None, "viewer")
    assert (grant.granted_by, grant.granted_at, grant.ended_at) == (None, row.created_at, at)


def test_only_another_active_admin_of_the_organization_lets_one_go(tenant: Tenant) -> None:
    row = Membership.objects.get(user=tenant.people["alice"])
    alice, scope = tenant.principal("alice"), Scope(tenant.organization)
    invite(tenant, "new@example.com", "org_admin")
    give_role(make_person("pia"), Role.PROJECT_ADMIN, tenant.organization, tenant.project)
    give_role(make_person("otto"), Role.ORG_ADMIN, tenant.other_organization)
    for act in (
        lambda: members.remove_member(actor=alice, scope=scope, member_id=row.pk),
        lambda: members.change_role(actor=alice, scope=scope, member_id=row.pk, role="viewer"),
    ):
        with pytest.raises(Conflict) as refused:
            act()
        assert refused.value.code == "last_org_admin"
    give_role(make_person("ada"), Role.ORG_ADMIN, tenant.organization)
    members.change_role(actor=alice, scope=scope, member_id=row.pk, role="viewer")
    assert Membership.objects.get(pk=row.pk).role == "viewer"


def test_a_role_that_ends_leaves_the_grants_of_other_places_and_people_open(tenant: Tenant) -> None:
    vera, bob = tenant.people["vera"], tenant.people["bob"]
    first = Membership.objects.get(user=vera)
    on_project = give_role(vera, Role.OPERATOR, tenant.organization, tenant.project)
    elsewhere = give_role(vera, Role.VIEWER, tenant.other_organization)
    others = Membership.objects.get(user=bob)
    for row in (first, on_project, elsewhere, others):
        begin_grant(row, by=None)

    def open_grants() -> set[tuple[uuid.UUID, uuid.UUID | None, uuid.UUID]]:
        rows = RoleGrant.objects.filter(ended_at__isnull=True)
        return set(rows.values_list("organization_id", "project_id", "user_id"))

    def place(row: Membership) -> tuple[uuid.UUID, uuid.UUID | None, uuid.UUID | None]:
        return row.organization_id, row.project_id, row.user_id

    before, alice = open_grants(), tenant.principal("alice")
    members.remove_member(actor=alice, scope=Scope(tenant.organization), member_id=first.pk)
    assert before - open_grants() == {place(first)}
    members.remove_member(actor=alice, scope=Scope(tenant.organization, tenant.project), member_id=on_project.pk)
    assert before - open_grants() == {place(first), place(on_project)}
    assert {place(elsewhere), place(others)} <= open_grants()


def test_a_role_given_by_command_names_no_grantor(tenant: Tenant) -> None:
    made = services.create_person_with_password(
        actor=SYSTEM.ref,
        email="dora@example.com",
        scope=Scope(tenant.organization),
        role=Role.VIEWER,
        password=services.first_password("a good first password"),
    )
    grant = RoleGrant.objects.get(user=made.user)
    assert (grant.role, grant.granted_by, grant.granted_by_name) == ("viewer", None, "")
    created = ("byteor", f"person:{made.user.pk}", {"email": "dora@example.com", "role": "viewer"})
    assert events("member.created") == [created]


def change_each_role(tenant: Tenant) -> dict[str, Callable[[], object]]:
    """Each way to change roles in Acme."""
    alice, scope = tenant.principal("alice"), Scope(tenant.organization)
    vera = Membership.objects.get(user=tenant.people["vera"])
    staff = person_principal(make_person("root", is_superuser=True))
    password = services.first_password("a good first password")

    def created() -> object:
        return services.create_person_with_password(
            actor=SYSTEM.ref, email="dora@example.com", scope=scope, role=Role.VIEWER, password=password
        )

    def proved() -> object:
        User.objects.filter(pk=vera.user_id).update(address_proved_at=None)
        return services.change_account_state(actor=staff, user_id=vera.user_id, active=True, address_proved=True)

    return {
        "a role is changed": lambda: members.change_role(actor=alice, scope=scope, member_id=vera.pk, role="operator"),
        "a member is removed": lambda: members.remove_member(actor=alice, scope=scope, member_id=vera.pk),
        "an invitation is accepted": lambda: members.accept_as_new_person(
            token=invite(tenant, "dora@example.com").token.reveal(), encoded="x"
        ),
        "a command creates a person": created,
        "a person is deactivated": lambda: services.change_account_state(
            actor=staff, user_id=vera.user_id, active=False
        ),
        "an address is confirmed": proved,
    }


@pytest.mark.parametrize(
    "way",
    [
        "a role is changed",
        "a member is removed",
        "an invitation is accepted",
        "a command creates a person",
        "a person is deactivated",
        "an address is confirmed",
    ],
)
def test_each_change_of_roles_calls_the_hooks_after_its_commit(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch, django_capture_on_commit_callbacks: Any, way: str
) -> None:
    """Approvals are decided again then: who voted or was needed may have another role."""
    changed: list[uuid.UUID] = []
    act = change_each_role(tenant)[way]
    monkeypatch.setattr(registry, "_hooks", [changed.append])
    with django_capture_on_commit_callbacks(execute=True):
        act()
        assert changed == []
    assert changed == [tenant.organization.pk]


# --- a confirmed address ---


def test_a_confirmed_address_turns_roles_into_invitations_except_below_what_is_deleted(tenant: Tenant) -> None:
    dora = make_person("dora", address_proved_at=None)
    deleted, theirs = (
        tenancy.create_project(actor=SYSTEM.ref, organization=organization, name="Closed")
        for organization in (tenant.organization, tenant.other_organization)
    )
    kept = [give_role(dora, Role.VIEWER, tenant.organization), give_role(dora, Role.VIEWER, *place_of(tenant.project))]
    left = [
        give_role(dora, Role.VIEWER, *place_of(deleted)),
        give_role(dora, Role.VIEWER, tenant.other_organization),
        give_role(dora, Role.VIEWER, *place_of(theirs)),
    ]
    Project.objects.filter(pk=deleted.pk).update(deleted_at=START)
    Organization.objects.filter(pk=tenant.other_organization.pk).update(deleted_at=START)
    _, secret = make_reset_link(actor=SYSTEM.ref, email="dora@example.com")
    at = clock.now()
    with time_machine.travel(at, tick=False):
        reset_password(token=secret.reveal(), encoded="new")
    for row in kept:
        row.refresh_from_db()
        assert (row.user_id, row.status, row.rev) == (None, "invited", 2)
        assert row.invitation_expires_at == at + dt.timedelta(days=7)
    for row in left:
        row.refresh_from_db()
        assert (row.user_id, row.status, row.rev, row.invitation_expires_at) == (dora.pk, "active", 1, None)
    ended = RoleGrant.objects.filter(user=dora).values_list("organization_id", "project_id", "ended_at")
    assert set(ended) == {(tenant.organization.pk, project, at) for project in (None, tenant.project.pk)}


def place_of(project: Project) -> tuple[Organization, Project]:
    return project.organization, project


# --- reset links ---


def test_a_reset_is_stored_and_recorded_in_each_organization(tenant: Tenant) -> None:
    vera = tenant.people["vera"]
    with time_machine.travel(START, tick=False):
        row, secret = make_reset_link(actor=SYSTEM.ref, email=" Vera@example.com")
        make_reset_link(actor=SYSTEM.ref, email="vera@example.com")
    assert (row.user_id, row.expires_at, row.used_at) == (vera.pk, START + dt.timedelta(hours=1), None)
    assert events("password.reset_link_made") == [("byteor", f"person:{vera.pk}", {})] * 2
    services.create_token(actor=tenant.principal("vera"), name="laptop")
    nonce = User.objects.get(pk=vera.pk).session_nonce
    at = START + dt.timedelta(hours=1) - dt.timedelta(milliseconds=1)
    with time_machine.travel(at, tick=False):
        assert open_reset(secret.reveal()) == row
        reset_password(token=secret.reveal(), encoded="new")
        assert open_reset(secret.reveal()) is None
        with pytest.raises(NotFound):
            reset_password(token=secret.reveal(), encoded="newer")
    vera.refresh_from_db()
    assert (vera.password, vera.password_reset_at) == ("new", at)
    assert vera.session_nonce != nonce
    assert set(PasswordReset.objects.filter(user=vera).values_list("used_at", flat=True)) == {at}
    assert set(PersonalToken.objects.filter(user=vera).values_list("revoked_at", flat=True)) == {at}
    rows = AuditEvent.objects.filter(action="password.reset")
    assert {(r.organization_id, r.target, r.details["by"]) for r in rows} == {
        (place, f"person:{vera.pk}", "link") for place in (tenant.organization.pk, None)
    }
    with pytest.raises(NotFound):
        make_reset_link(actor=SYSTEM.ref, email="nobody@example.com")


def test_a_reset_link_ends_exactly_after_an_hour(tenant: Tenant) -> None:
    with time_machine.travel(START, tick=False):
        _, secret = make_reset_link(actor=SYSTEM.ref, email="vera@example.com")
    with time_machine.travel(START + dt.timedelta(hours=1), tick=False):
        assert open_reset(secret.reveal()) is None
        with pytest.raises(NotFound):
            reset_password(token=secret.reveal(), encoded="new")
