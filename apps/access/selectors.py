"""Queries on roles: where a caller has a permission, and who has it at a place."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

from django.db.models import Q, QuerySet

from apps.access.models import Membership, MemberStatus, User
from apps.access.principals import Principal
from apps.access.roles import GRANTS, PROJECT_ROLES, Permission, Role, roles_granting
from apps.tenancy.models import Environment, Organization, Project
from apps.tenancy.scope import Scope


def roles_at(principal: Principal, scope: Scope) -> tuple[Role | None, Role | None, bool]:
    """Return (organization role, role on the scope's project, any role in the organization) of a caller."""
    org_role: Role | None = None
    project_role: Role | None = None
    anywhere = False
    for organization_id, project_id, role in principal.roles:
        if organization_id != scope.organization_id:
            continue
        anywhere = True
        if project_id is None:
            org_role = Role(role)
        elif project_id == scope.project_id:
            project_role = Role(role)
    return org_role, project_role, anywhere


def organizations_where(principal: Principal, permission: Permission) -> QuerySet[Any]:
    """Organizations on which the caller has `permission` by a role. Platform staff get none without a role."""
    able = [at for at, project, role in principal.roles if project is None and permission in GRANTS[Role(role)]]
    return Organization.objects.alive().filter(pk__in=able)


def projects_where(principal: Principal, permission: Permission) -> QuerySet[Any]:
    """Projects on which the caller has `permission` by a role. Platform staff get none without a role."""
    on_all = {at: Role(role) for at, project, role in principal.roles if project is None}
    on_project = {project: Role(role) for _, project, role in principal.roles if project is not None}
    admin_of = [at for at, role in on_all.items() if role is Role.ORG_ADMIN]
    able_in = [at for at, role in on_all.items() if permission in GRANTS[role]]
    able_on = [project for project, role in on_project.items() if permission in GRANTS[role]]
    return Project.objects.alive().filter(
        Q(organization__in=admin_of) | Q(pk__in=able_on) | (Q(organization__in=able_in) & ~Q(pk__in=list(on_project)))
    )


def environments_where(principal: Principal, permission: Permission) -> QuerySet[Any]:
    """Environments in which the caller has `permission` by a role. Platform staff get none without a role."""
    return Environment.objects.alive().filter(project__in=projects_where(principal, permission).values("pk"))


def may_on_some_organization(principal: Principal, permission: Permission) -> bool:
    """Return whether the caller has `permission` on at least one organization."""
    return any(project is None and permission in GRANTS[Role(role)] for _, project, role in principal.roles)


def may_on_some_project(principal: Principal, permission: Permission) -> bool:
    """Return whether the caller has `permission` on at least one project. One query, or none without such a role."""
    somewhere = any(permission in GRANTS[Role(role)] for _, _, role in principal.roles)
    return somewhere and projects_where(principal, permission).exists()


def people_with(permission: Permission, scope: Scope) -> QuerySet[User]:
    """Active users who have `permission` at `scope`, by the same three rules as `can`."""
    able = [str(role) for role in roles_granting(permission)]
    members = Membership.objects.filter(organization_id=scope.organization_id, status=MemberStatus.ACTIVE)
    admins = members.filter(project__isnull=True, role=Role.ORG_ADMIN).values("user_id")
    by_org = members.filter(project__isnull=True, role__in=able).values("user_id")
    people = User.objects.filter(is_active=True)
    if scope.project_id is None:
        return people.filter(pk__in=by_org)
    on_project = members.filter(project_id=scope.project_id)
    by_project = on_project.filter(role__in=able).values("user_id")
    return people.filter(
        Q(pk__in=admins)
        | Q(pk__in=by_project)
        | (Q(pk__in=by_org) & ~Q(pk__in=on_project.filter(role__in=PROJECT_ROLES).values("user_id")))
    )


def people_who_may(
    permission: Permission, wanted: Iterable[tuple[Environment, uuid.UUID]]
) -> set[tuple[uuid.UUID, uuid.UUID]]:
    """Return the pairs (environment id, user id) of `wanted` (environment, user) that have `permission` there now.

    The same three rules as `can`, in one query for any number. The projects of the environments are loaded already.
    """
    pairs = list(wanted)
    if not pairs:
        return set()
    people = {person for _, person in pairs}
    organizations = {environment.project.organization_id for environment, _ in pairs}
    rows = Membership.objects.filter(
        Q(project__isnull=True) | Q(project__deleted_at__isnull=True),
        user_id__in=people,
        user__is_active=True,
        status=MemberStatus.ACTIVE,
        organization_id__in=organizations,
    ).values_list("user_id", "organization_id", "project_id", "role")
    roles: dict[tuple[uuid.UUID | None, uuid.UUID, uuid.UUID | None], Role] = {
        (user, organization, project): Role(role) for user, organization, project, role in rows
    }
    able: set[tuple[uuid.UUID, uuid.UUID]] = set()
    for environment, person in pairs:
        on_all = roles.get((person, environment.project.organization_id, None))
        on_project = roles.get((person, environment.project.organization_id, environment.project_id))
        role = on_all if on_all is Role.ORG_ADMIN else on_project or on_all
        if role is not None and permission in GRANTS[role]:
            able.add((environment.pk, person))
    return able
