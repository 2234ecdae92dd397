"""The role matrix. One static table; everything that asks reads it here."""

from __future__ import annotations

from django.db import models


class Role(models.TextChoices):
    """What a membership gives, on an organization or on one project."""

    ORG_ADMIN = "org_admin", "Organization admin"
    PROJECT_ADMIN = "project_admin", "Project admin"
    OPERATOR = "operator", "Operator"
    VIEWER = "viewer", "Viewer"


class Permission(models.TextChoices):
    """What can be asked of `can`. The last one is what a project role gives on its organization."""

    VIEW_ORG = "ViewOrg"
    MANAGE_ORG_MEMBERSHIPS = "ManageOrgMemberships"
    VIEW_PROJECT = "ViewProject"
    MANAGE_PROJECT = "ManageProject"
    OPERATE_PROJECT = "OperateProject"
    VIEW_ENVIRONMENT = "ViewEnvironment"
    MANAGE_ENVIRONMENT = "ManageEnvironment"
    OPERATE_ENVIRONMENT = "OperateEnvironment"
    GLANCE_ORG = "GlanceOrg"


_VIEW = {Permission.VIEW_ORG, Permission.VIEW_PROJECT, Permission.VIEW_ENVIRONMENT, Permission.GLANCE_ORG}
_OPERATE = _VIEW | {Permission.OPERATE_PROJECT, Permission.OPERATE_ENVIRONMENT}
_MANAGE = _OPERATE | {Permission.MANAGE_PROJECT, Permission.MANAGE_ENVIRONMENT}

GRANTS: dict[Role, frozenset[Permission]] = {
    Role.ORG_ADMIN: frozenset(Permission),
    Role.PROJECT_ADMIN: frozenset(_MANAGE),
    Role.OPERATOR: frozenset(_OPERATE),
    Role.VIEWER: frozenset(_VIEW),
}

PROJECT_ROLES = (Role.PROJECT_ADMIN, Role.OPERATOR, Role.VIEWER)


def roles_with(permission: Permission) -> list[Role]:
    """The roles whose row in the table has `permission`."""
    return [role for role, grants in GRANTS.items() if permission in grants]
