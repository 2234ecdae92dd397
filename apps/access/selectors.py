"""Who has which role where, and what a caller may see."""

from __future__ import annotations

import uuid
from typing import Any

from django.db.models import Q, QuerySet

from apps.access.models import Membership, MemberStatus, User
from apps.access.principals import Principal
from apps.access.roles import PROJECT_ROLES, Permission, Role, roles_with
from apps.core.prepared import Prepared
from apps.tenancy.models import Environment, Organization, Project
from apps.tenancy.scope import Scope


def active_memberships(user_id: uuid.UUID) -> QuerySet[Membership]:
    """A person's accepted memberships in organizations and projects that are alive."""
    return Membership.objects.filter(
        Q(project__isnull=True) | Q(project__deleted_at__isnull=True),
        user_id=user_id,
        user__is_active=True,
        status=MemberStatus.ACTIVE,
        organization__deleted_at__isnull=True,
    )


_roles_in: Prepared[tuple[uuid.UUID | None, str]] = Prepared(
    lambda user_id, organization_id: (
        active_memberships(user_id).filter(organization_id=organization_id).values_list("project_id", "role")
    )
)


def roles_at(user_id: uuid.UUID, scope: Scope) -> tuple[Role | None, Role | None, bool]:
    """(organization role, role on the scope's project, any role in the organization) in one query."""
    org_role: Role | None = None
    project_role: Role | None = None
    anywhere = False
    for project_id, role in _roles_in.all(user_id, scope.organization_id):
        anywhere = True
        if project_id is None:
            org_role = Role(role)
        elif project_id == scope.project_id:
            project_role = Role(role)
    return org_role, project_role, anywhere


def organizations_visible_to(principal: Principal) -> QuerySet[Any]:
    """Organizations the caller has any role in; platform staff see all."""
    rows = Organization.objects.alive()
    if principal.is_superuser:
        return rows
    if principal.id is None or not principal.is_person:
        return rows.none()
    return rows.filter(pk__in=active_memberships(principal.id).values("organization_id"))


def _member_organizations(principal: Principal) -> QuerySet[Any]:
    return active_memberships(principal.id or uuid.UUID(int=0)).filter(project__isnull=True).values("organization_id")


def projects_visible_to(principal: Principal) -> QuerySet[Any]:
    """Projects the caller may view: by a role on the organization or on the project itself."""
    rows = Project.objects.alive()
    if principal.is_superuser:
        return rows
    if principal.id is None or not principal.is_person:
        return rows.none()
    own = active_memberships(principal.id).filter(project__isnull=False).values("project_id")
    return rows.filter(Q(organization__in=_member_organizations(principal)) | Q(pk__in=own))


def environments_visible_to(principal: Principal) -> QuerySet[Any]:
    """Environments of the projects the caller may view."""
    rows = Environment.objects.alive()
    if principal.is_superuser:
        return rows
    return rows.filter(project__in=projects_visible_to(principal).values("pk"))


def people_with(permission: Permission, scope: Scope) -> QuerySet[User]:
    """Active people who have `permission` at `scope`, by the same three rules as `can`."""
    able = [str(role) for role in roles_with(permission)]
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


def environments_where(principal: Principal, permission: Permission) -> QuerySet[Any]:
    """Living environments in which the caller *has* `permission` by a role (being platform staff gives none)."""
    rows = Environment.objects.alive()
    if principal.id is None or not principal.is_person:
        return rows.none()
    able = [str(role) for role in roles_with(permission)]
    mine = active_memberships(principal.id)
    admin_of = mine.filter(project__isnull=True, role=Role.ORG_ADMIN).values("organization_id")
    able_in = mine.filter(project__isnull=True, role__in=able).values("organization_id")
    on_projects = mine.filter(project__isnull=False)
    return rows.filter(
        Q(project__organization__in=admin_of)
        | Q(project__in=on_projects.filter(role__in=able).values("project_id"))
        | (Q(project__organization__in=able_in) & ~Q(project__in=on_projects.values("project_id")))
    )
