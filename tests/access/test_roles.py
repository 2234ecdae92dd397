"""The role matrix and its three rules."""

import pytest

from apps.access.policy import can
from apps.access.principals import person_principal
from apps.access.roles import Permission, Role
from apps.access.selectors import environments_where, people_with
from apps.tenancy.scope import Scope
from tests.support import give_role, make_person

P = Permission
MATRIX = {
    Role.ORG_ADMIN: set(P) - {P.VIEW_ORG_SUMMARY},
    Role.PROJECT_ADMIN: {P.VIEW_ORG, P.VIEW_PROJECT, P.MANAGE_PROJECT, P.OPERATE_PROJECT, P.VIEW_ENVIRONMENT,
                         P.MANAGE_ENVIRONMENT, P.OPERATE_ENVIRONMENT},
    Role.OPERATOR: {P.VIEW_ORG, P.VIEW_PROJECT, P.OPERATE_PROJECT, P.VIEW_ENVIRONMENT, P.OPERATE_ENVIRONMENT},
    Role.VIEWER: {P.VIEW_ORG, P.VIEW_PROJECT, P.VIEW_ENVIRONMENT},
}  # fmt: skip


def scope_for(tenant, permission) -> Scope:
    if "Org" in permission:
        return Scope(tenant.organization)
    if "Project" in permission:
        return Scope(tenant.organization, tenant.project)
    return tenant.scope()


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("permission", sorted(set(P) - {P.VIEW_ORG_SUMMARY}))
def test_an_organization_role_gives_its_row_of_the_matrix_and_no_more(tenant, role, permission):
    who = make_person("dave")
    give_role(who, role, tenant.organization)
    assert bool(can(person_principal(who), permission, scope_for(tenant, permission))) == (permission in MATRIX[role])


@pytest.mark.parametrize("role", [Role.PROJECT_ADMIN, Role.OPERATOR, Role.VIEWER])
@pytest.mark.parametrize("permission", sorted(set(P) - {P.VIEW_ORG_SUMMARY}))
def test_a_project_role_counts_inside_the_project_and_glances_at_the_organization(tenant, role, permission):
    who = make_person("dave")
    give_role(who, role, tenant.organization, tenant.project)
    expected = permission in MATRIX[role] and "Org" not in permission
    assert bool(can(person_principal(who), permission, scope_for(tenant, permission))) == expected
    assert can(person_principal(who), P.VIEW_ORG_SUMMARY, Scope(tenant.organization))


def test_the_project_role_decides_inside_the_project_up_or_down_save_for_org_admins(tenant):
    down, up, admin = make_person("down"), make_person("up"), make_person("boss")
    give_role(down, Role.OPERATOR, tenant.organization)
    give_role(down, Role.VIEWER, tenant.organization, tenant.project)
    give_role(up, Role.VIEWER, tenant.organization)
    give_role(up, Role.PROJECT_ADMIN, tenant.organization, tenant.project)
    give_role(admin, Role.ORG_ADMIN, tenant.organization)
    give_role(admin, Role.VIEWER, tenant.organization, tenant.project)
    operate = {u.email for u in people_with(P.OPERATE_ENVIRONMENT, tenant.scope())}
    assert operate == {f"{n}@example.com" for n in ("alice", "bob", "carol", "up", "boss")}
    for who, expected in ((down, False), (up, True), (admin, True)):
        principal = person_principal(who)
        assert bool(can(principal, P.OPERATE_ENVIRONMENT, tenant.scope())) is expected
        assert environments_where(principal, P.OPERATE_ENVIRONMENT).filter(pk=tenant.dev.pk).exists() is expected


def test_platform_staff_decide_nothing_without_a_role(tenant):
    staff = make_person("root", is_superuser=True)
    assert not can(person_principal(staff), P.OPERATE_ENVIRONMENT, tenant.scope())
    assert not can(person_principal(staff), P.VIEW_ENVIRONMENT, tenant.scope())


@pytest.mark.parametrize(
    ("fields", "granted"),
    [({}, False), ({"is_superuser": True}, True), ({"is_superuser": True, "is_active": False}, False)],
)
def test_only_active_platform_staff_have_model_permissions(db, fields, granted):
    who = make_person("root", **fields)
    assert who.has_perm("access.view_user") is granted
    assert who.has_perms(["access.view_user", "access.change_user"]) is granted
    assert who.has_module_perms("access") is granted


def test_an_invited_or_deactivated_member_has_nothing(tenant):
    who = make_person("dave", is_active=False)
    give_role(who, Role.ORG_ADMIN, tenant.organization)
    assert not can(person_principal(who), P.VIEW_ORG, Scope(tenant.organization))
    assert who not in people_with(P.VIEW_ORG, Scope(tenant.organization))
