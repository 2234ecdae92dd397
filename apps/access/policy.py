"""The one question: may this caller do this here?"""

from __future__ import annotations

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
    """Yes, by this role."""

    role: str = ""

    def __bool__(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Denied:
    """No, because. `visible` tells whether the caller may know that the thing exists (403) or not (404)."""

    reason: str
    visible: bool = False

    def __bool__(self) -> bool:
        return False


Decision = Allowed | Denied

VIEW_OF_LEVEL = {
    "organization": Permission.VIEW_ORG,
    "project": Permission.VIEW_PROJECT,
    "environment": Permission.VIEW_ENVIRONMENT,
}


def can(principal: Principal, permission: Permission, scope: Scope) -> Decision:
    """Whether `principal` has `permission` at `scope` (contract: roles and the three rules of resolution).

    1. An org_admin has everything under the organization. 2. Without a role on the project, the organization-level
    role counts; with one, it decides inside that project, up or down. 3. A permission at one level needs the View
    permission of each level above; a project role gives a glance at its organization only. Platform staff
    who hold no role are denied here like anybody else.
    """
    if principal.kind == "system":
        return Allowed("system")
    if not principal.is_person or principal.id is None or principal.user is None or not principal.user.is_active:
        return Denied("not a person with roles")
    org_role, project_role, anywhere = roles_at(principal.id, scope)
    if org_role is Role.ORG_ADMIN:
        return Allowed(Role.ORG_ADMIN)
    if permission is Permission.GLANCE_ORG:
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
    """`can`, or raise: NotFound where the caller may not even see it, else Forbidden. Puts a denial on record.

    Call it outside a transaction that will be rolled back: the denial's row must stay.
    """
    decision = can(principal, permission, scope)
    if isinstance(decision, Denied):
        refuse(principal, permission, scope, decision)
    return decision


def refuse(principal: Principal, permission: Permission, scope: Scope, denied: Denied) -> NoReturn:
    """Put on record that `can` said no, and raise what `require` raises."""
    audit.record_denial(
        organization_id=scope.organization_id if denied.visible else None,
        action=f"access.{permission}",
        actor=principal.ref,
        target=f"{scope.level}:{scope.node.pk}",
        reason=denied.reason,
        scope=scope.as_dict(),
    )
    if denied.visible:
        raise Forbidden(f"This needs the permission {permission}.")
    raise NotFound()
