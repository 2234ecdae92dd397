"""Authorization: whether a caller may do something at a scope."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import NoReturn

from apps.access.principals import Principal
from apps.access.roles import GRANTS, Permission, Role
from apps.access.selectors import roles_at
from apps.audit import services as audit
from apps.core.errors import Forbidden, NotFound
from apps.tenancy.scope import Scope


@dataclass(frozen=True, slots=True)
class Allowed:
    """The permission is granted, by `role`."""

    role: str = ""

    def __bool__(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Denied:
    """The permission is denied. `visible` is whether the caller may know that the object exists (403) or not (404)."""

    reason: str
    visible: bool = False

    def __bool__(self) -> bool:
        return False


Decision = Allowed | Denied

LEVELS = ("organization", "project", "environment")
VIEW_OF_LEVEL = {
    "organization": Permission.VIEW_ORG,
    "project": Permission.VIEW_PROJECT,
    "environment": Permission.VIEW_ENVIRONMENT,
}


def can(principal: Principal, permission: Permission, scope: Scope) -> Decision:
    """Return whether `principal` has `permission` at `scope`.

    1. An org_admin has every permission under the organization. 2. Without a role on the project, the
    organization-level role counts; with one, that role decides inside the project, whether it is higher or lower. 3. A
    permission at one level needs the View permission of each level above; a project role gives only ViewOrgSummary on
    its organization. Platform staff without a role are denied like anyone else. Callers without roles, such as agents, have
    no permission.
    """
    if principal.kind == "system":
        return Allowed("system")
    org_role, project_role, anywhere = roles_at(principal, scope)
    if org_role is Role.ORG_ADMIN:
        return Allowed(Role.ORG_ADMIN)
    if permission is Permission.VIEW_ORG_SUMMARY:
        return Allowed(org_role or "project role") if anywhere else Denied("no role in the organization")
    if scope.level == "organization":
        if org_role is not None and permission in GRANTS[org_role]:
            return Allowed(org_role)
        return Denied(f"needs {permission}", visible=anywhere)
    role = project_role or org_role
    if role is None:
        return Denied("no role on the project")
    grants = GRANTS[role]
    visible = VIEW_OF_LEVEL[scope.level] in grants
    if permission in grants:
        return Allowed(role)
    return Denied(f"{role} lacks {permission}", visible=visible)


def require(principal: Principal, permission: Permission, scope: Scope) -> Allowed:
    """As `can`, but raise NotFound if the caller may not see the object, else Forbidden.

    A denial is recorded, also if the caller's transaction is rolled back.
    """
    decision = can(principal, permission, scope)
    if isinstance(decision, Denied):
        refuse(principal, permission, scope, decision)
    return decision


def require_person(principal: Principal) -> None:
    """Raise Forbidden `person_required` for an automation's caller. Commands of the installation's operator may."""
    if not principal.is_person and principal.kind != "system":
        raise Forbidden("This needs a person.", code="person_required")


def refuse(principal: Principal, permission: Permission, scope: Scope, denied: Denied) -> NoReturn:
    """Record a denial, and raise as `require` does."""
    audit.record_denial(
        organization_id=scope.organization_id if denied.visible else None,
        action=f"access.{permission}",
        actor=principal.ref,
        target=f"{scope.level}:{scope.node.pk}",
        reason=denied.reason,
        scope=scope.as_dict(),
        any_target=not denied.visible,
    )
    if denied.visible:
        raise Forbidden(f"This needs the permission {permission}.")
    raise NotFound()


def refuse_unknown(principal: Principal, permission: Permission, *ids: uuid.UUID) -> None:
    """Refuse a path to a missing object with the same queries and audit event as a path to an invisible one.

    The time of a 404 then does not distinguish the two. `ids` are those of the path, topmost first.
    """
    _ = principal.roles
    level = LEVELS[len(ids) - 1]
    audit.record_denial(
        organization_id=None,
        action=f"access.{permission}",
        actor=principal.ref,
        target=f"{level}:{ids[-1]}",
        reason="unknown",
        scope={f"{name}_id": str(each) for name, each in zip(LEVELS, ids, strict=False)},
        any_target=True,
    )
