"""API of members of organizations and projects."""

from __future__ import annotations

import uuid
from typing import Any, TypedDict

from django.conf import settings
from rest_framework.request import Request
from rest_framework.response import Response

from apps.access.models import Membership, MemberStatus
from apps.access.roles import Permission
from apps.access.services import change_role, invite, remove_member
from apps.access.services.members import members_of
from apps.api.base import ScopedView, no_content_response
from apps.api.documents import document
from apps.api.etags import check_if_match, etag_response
from apps.api.operations import operation
from apps.api.parameters import status_filter, text_filter
from apps.api.serializers import StrictCharField, StrictSerializer, validated_data, without_read_only
from apps.core.db import require_row
from apps.tenancy.scope import Scope


class InvitationInput(StrictSerializer):
    """`{email, role}`."""

    email = StrictCharField(max_length=254)
    role = StrictCharField(max_length=16)


class RoleInput(StrictSerializer):
    """`{role}`."""

    role = StrictCharField(max_length=16)


class MemberDocument(TypedDict):
    """A member, or a pending invitation, which has no `user_id`."""

    id: str
    user_id: str | None
    email: str
    role: str
    status: str
    created_at: str


class InvitationDocument(MemberDocument):
    """A new invitation, with its link."""

    invitation_url: str


def member_document(row: Membership) -> MemberDocument:
    """Return the API representation of a member or a pending invitation."""
    return document(MemberDocument, row)


def member_of(scope: Scope, member_id: uuid.UUID) -> Membership:
    """Return a member of the organization or project. Raises NotFound."""
    return require_row(members_of(scope), pk=member_id)


MEMBER_ERRORS = ("last_org_admin", "member_exists")
FILTERS = {"status": status_filter(MemberStatus.values), "q": text_filter("email")}


class _MembersView(ScopedView):
    def members(self, request: Request) -> Response:
        """List the members and pending invitations of the organization or project."""
        return self.page(members_of(self.scope), member_document)

    def invite(self, request: Request) -> Response:
        """Invite a person by e-mail address. The invitation link is in this response only."""
        made = invite(actor=self.principal, scope=self.scope, **self.given)
        link = f"{settings.BYTEOR_UI_BASE_URL}/auth/invitations/{made.token.reveal()}"
        return Response({**member_document(made.membership), "invitation_url": link}, status=201)


class _MemberView(ScopedView):
    lookup = member_of
    found: Membership

    def _expected_rev(self, request: Request) -> int | None:
        """The revision that an If-Match header was compared with; None without the header."""
        return self.found.rev if "If-Match" in request.headers else None

    def read(self, request: Request) -> Response:
        """Return a member or a pending invitation."""
        return etag_response(request, member_document(self.found), str(self.found.rev))

    def change_role(self, request: Request) -> Response:
        """Change the role of a member."""
        given = validated_data(RoleInput, without_read_only(request.data, member_document(self.found), RoleInput))
        check_if_match(request, self.found.rev)
        changed = change_role(
            actor=self.principal,
            scope=self.scope,
            member_id=self.found.pk,
            role=given["role"],
            expected_rev=self._expected_rev(request),
        )
        return etag_response(request, member_document(changed), str(changed.rev))

    def remove(self, request: Request) -> Response:
        """Remove a member, or cancel an invitation."""
        check_if_match(request, self.found.rev)
        remove_member(
            actor=self.principal, scope=self.scope, member_id=self.found.pk, expected_rev=self._expected_rev(request)
        )
        return no_content_response()


_LIST: dict[str, Any] = {"lists": MemberDocument, "filters": FILTERS}
_INVITATION: dict[str, Any] = {
    "body": InvitationInput,
    "answer": InvitationDocument,
    "status": 201,
    "errors": ("member_exists",),
}
_ROLE_CHANGE: dict[str, Any] = {
    "body": RoleInput,
    "parses_body": False,
    "answer": MemberDocument,
    "errors": MEMBER_ERRORS,
}
_REMOVAL: dict[str, Any] = {"status": 204, "errors": MEMBER_ERRORS}


class OrganizationMembersView(_MembersView):
    """Members of an organization."""

    level = "organization"

    get = operation(Permission.VIEW_ORG, **_LIST)(_MembersView.members)
    post = operation(Permission.MANAGE_ORG_MEMBERSHIPS, **_INVITATION)(_MembersView.invite)


class OrganizationMemberView(_MemberView):
    """One member of an organization."""

    level = "organization"

    get = operation(Permission.VIEW_ORG, answer=MemberDocument)(_MemberView.read)
    put = operation(Permission.MANAGE_ORG_MEMBERSHIPS, **_ROLE_CHANGE)(_MemberView.change_role)
    delete = operation(Permission.MANAGE_ORG_MEMBERSHIPS, **_REMOVAL)(_MemberView.remove)


class ProjectMembersView(_MembersView):
    """Members of a project."""

    level = "project"

    get = operation(Permission.VIEW_PROJECT, **_LIST)(_MembersView.members)
    post = operation(Permission.MANAGE_PROJECT, **_INVITATION)(_MembersView.invite)


class ProjectMemberView(_MemberView):
    """One member of a project."""

    level = "project"

    get = operation(Permission.VIEW_PROJECT, answer=MemberDocument)(_MemberView.read)
    put = operation(Permission.MANAGE_PROJECT, **_ROLE_CHANGE)(_MemberView.change_role)
    delete = operation(Permission.MANAGE_PROJECT, **_REMOVAL)(_MemberView.remove)
