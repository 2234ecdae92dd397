"""Members of an organization or of a project."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import ClassVar

from django.conf import settings
from rest_framework.request import Request
from rest_framework.response import Response

from apps.access.api.base import ScopedView, no_content
from apps.access.models import Membership, MemberStatus
from apps.access.roles import Permission
from apps.access.services import change_role, invite, remove_member
from apps.access.services.members import members_of
from apps.core.api import (
    StrictSerializer,
    Text,
    check_if_match,
    keyset_page,
    rfc3339,
    status_filter,
    tagged,
    text_filter,
)
from apps.core.errors import NotFound
from apps.tenancy.scope import Scope


class InvitationInput(StrictSerializer):
    """`{email, role}`."""

    email = Text(max_length=254)
    role = Text(max_length=16)


class RoleInput(StrictSerializer):
    """`{role}`."""

    role = Text(max_length=16)


def member_document(row: Membership) -> dict[str, object]:
    """A member, or an invitation that waits."""
    return {
        "id": str(row.pk),
        "user_id": str(row.user_id) if row.user_id else None,
        "email": row.email,
        "role": row.role,
        "status": row.status,
        "created_at": rfc3339(row.created_at),
    }


class _Members(ScopedView):
    def get(self, request: Request, **ids: uuid.UUID) -> Response:
        filters = {"status": status_filter(MemberStatus.values), "q": text_filter("email")}
        return keyset_page(request, members_of(self.scope), member_document, filters=filters)

    def post(self, request: Request, **ids: uuid.UUID) -> Response:
        body = self.read(InvitationInput)
        made = invite(actor=self.principal, scope=self.scope, email=body["email"], role=body["role"])
        link = f"{settings.BYTEOR_UI_BASE_URL}/auth/invitations/{made.token.reveal()}"
        return Response({**member_document(made.membership), "invitation_url": link}, status=201)


def member_of(scope: Scope, member_id: uuid.UUID) -> Membership:
    """The member of the organization or project. NotFound when it has none like it."""
    row = members_of(scope).filter(pk=member_id).first()
    if row is None:
        raise NotFound()
    return row


class _Member(ScopedView):
    finds = member_of

    def get(self, request: Request, member_id: uuid.UUID, **ids: uuid.UUID) -> Response:
        row = member_of(self.scope, member_id)
        return tagged(request, member_document(row), str(row.rev))

    def put(self, request: Request, member_id: uuid.UUID, **ids: uuid.UUID) -> Response:
        row = member_of(self.scope, member_id)
        body = self.read(RoleInput)
        check_if_match(request, row.rev)
        expected = row.rev if "If-Match" in request.headers else None
        changed = change_role(
            actor=self.principal, scope=self.scope, member_id=member_id, role=body["role"], expected_rev=expected
        )
        return tagged(request, member_document(changed), str(changed.rev))

    def delete(self, request: Request, member_id: uuid.UUID, **ids: uuid.UUID) -> Response:
        row = member_of(self.scope, member_id)
        check_if_match(request, row.rev)
        remove_member(actor=self.principal, scope=self.scope, member_id=member_id)
        return no_content()


_ORG: Mapping[str, Permission] = {
    "GET": Permission.VIEW_ORG,
    **dict.fromkeys(("POST", "PUT", "DELETE"), Permission.MANAGE_ORG_MEMBERSHIPS),
}
_PROJECT: Mapping[str, Permission] = {
    "GET": Permission.VIEW_PROJECT,
    **dict.fromkeys(("POST", "PUT", "DELETE"), Permission.MANAGE_PROJECT),
}


class OrganizationMembersView(_Members):
    """Members of an organization; inviting needs ManageOrgMemberships."""

    level: ClassVar[str] = "organization"
    permissions: ClassVar[Mapping[str, Permission]] = _ORG


class OrganizationMemberView(_Member):
    """One member of an organization."""

    level: ClassVar[str] = "organization"
    permissions: ClassVar[Mapping[str, Permission]] = _ORG


class ProjectMembersView(_Members):
    """Members of a project; inviting needs ManageProject."""

    level: ClassVar[str] = "project"
    permissions: ClassVar[Mapping[str, Permission]] = _PROJECT


class ProjectMemberView(_Member):
    """One member of a project."""

    level: ClassVar[str] = "project"
    permissions: ClassVar[Mapping[str, Permission]] = _PROJECT
