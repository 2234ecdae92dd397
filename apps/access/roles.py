"""The static table of roles and permissions."""

from __future__ import annotations

import uuid

from django.db import models


class Role(models.TextChoices):
    """Role of a membership, on an organization or on one project."""

    ORG_ADMIN = "org_admin", "Organization admin"
    PROJECT_ADMIN = "project_admin", "Project admin"
    OPERATOR = "operator", "Operator"
    VIEWER = "viewer", "Viewer"


class Permission(models.TextChoices):
    """Permissions of `can`. The last one is what a project role grants on its organization."""

    VIEW_ORG = "ViewOrg"
    MANAGE_ORG_MEMBERSHIPS = "ManageOrgMemberships"
    VIEW_PROJECT = "ViewProject"
    MANAGE_PROJECT = "ManageProject"
    OPERATE_PROJECT = "OperateProject"
    VIEW_ENVIRONMENT = "ViewEnvironment"
    MANAGE_ENVIRONMENT = "ManageEnvironment"
    OPERATE_ENVIRONMENT = "OperateEnvironment"
    VIEW_ORG_SUMMARY = "GlanceOrg"


RoleRow = tuple[uuid.UUID, uuid.UUID | None, str]
"""Organization, project (None: the whole organization), role."""

_VIEW = {Permission.VIEW_ORG, Permission.VIEW_PROJECT, Permission.VIEW_ENVIRONMENT, Permission.VIEW_ORG_SUMMARY}
_OPERATE = _VIEW | {Permission.OPERATE_PROJECT, Permission.OPERATE_ENVIRONMENT}
_MANAGE = _OPERATE | {Permission.MANAGE_PROJECT, Permission.MANAGE_ENVIRONMENT}

GRANTS: dict[Role, frozenset[Permission]] = {
    Role.ORG_ADMIN: frozenset(Permission),
    Role.PROJECT_ADMIN: frozenset(_MANAGE),
    Role.OPERATOR: frozenset(_OPERATE),
    Role.VIEWER: frozenset(_VIEW),
}

PROJECT_ROLES = (Role.PROJECT_ADMIN, Role.OPERATOR, Role.VIEWER)


def roles_granting(permission: Permission) -> list[Role]:
    """Return the roles that have `permission`."""
    return [role for role, grants in GRANTS.items() if permission in grants]
