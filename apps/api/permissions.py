"""Permissions for the delivery modules of the apps below `access` (`tenancy`, `audit`).

Every endpoint and every screen states a permission, which `apps.access` defines. Apps above `access` import them from there.
"""

from apps.access.policy import can, require
from apps.access.principals import Principal
from apps.access.roles import Permission
from apps.access.selectors import may_on_some_organization, may_on_some_project, organizations_where, projects_where

__all__ = [
    "Permission",
    "Principal",
    "can",
    "may_on_some_organization",
    "may_on_some_project",
    "organizations_where",
    "projects_where",
    "require",
]
