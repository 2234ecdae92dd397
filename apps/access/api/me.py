"""API of the calling user and their personal tokens."""

from __future__ import annotations

from typing import TypedDict

from rest_framework.request import Request
from rest_framework.response import Response

from apps.access.models import PersonalToken
from apps.access.roles import RoleRow
from apps.access.services import create_token, revoke_token
from apps.api.base import ApiView, no_content_response
from apps.api.documents import document
from apps.api.operations import operation
from apps.api.serializers import StrictCharField, StrictIntegerField, StrictSerializer


class RoleDocument(TypedDict):
    """A role; without a project it is on the whole organization."""

    organization_id: str
    project_id: str | None
    role: str


class MeDocument(TypedDict):
    """The caller's account and roles."""

    id: str
    kind: str
    email: str
    name: str
    via: str
    is_superuser: bool
    roles: list[RoleDocument]


class TokenDocument(TypedDict):
    """A personal token, without its text."""

    id: str
    name: str
    prefix: str
    created_at: str
    expires_at: str
    last_used_at: str | None
    revoked_at: str | None


class CreatedToken(TokenDocument):
    """A personal token, with its text."""

    token: str


def role_document(row: RoleRow) -> RoleDocument:
    """Return the API representation of a role, as in `/me`."""
    organization_id, project_id, role = row
    return document(RoleDocument, row, organization_id=organization_id, project_id=project_id, role=role)


def token_document(row: PersonalToken) -> TokenDocument:
    """Return the API representation of a personal token, without its text."""
    return document(TokenDocument, row, prefix=row.public_id)


class TokenInput(StrictSerializer):
    """`{name, expires_in_seconds?}`."""

    name = StrictCharField()
    expires_in_seconds = StrictIntegerField(required=False)


class MeView(ApiView):
    """The calling user."""

    @operation(answer=MeDocument)
    def get(self, request: Request) -> Response:
        """Return your account and every role that you hold."""
        user = self.principal.user
        assert user is not None
        body = document(
            MeDocument,
            user,
            kind="person",
            via=self.principal.via,
            roles=[role_document(row) for row in self.principal.roles],
        )
        return Response(body)


class TokensView(ApiView):
    """Your personal tokens."""

    @operation(lists=TokenDocument)
    def get(self, request: Request) -> Response:
        """List your personal tokens."""
        return self.page(PersonalToken.objects.filter(user=self.principal.user), token_document)

    @operation(body=TokenInput, answer=CreatedToken, status=201)
    def post(self, request: Request) -> Response:
        """Create a personal token. Its text is in this response only."""
        made = create_token(
            actor=self.principal,
            name=self.given["name"],
            expires_in_seconds=self.given.get("expires_in_seconds"),
        )
        return Response({**token_document(made.row), "token": made.text.reveal()}, status=201)


class TokenView(ApiView):
    """One of your personal tokens."""

    @operation(status=204)
    def delete(self, request: Request) -> Response:
        """Revoke one of your personal tokens at once."""
        revoke_token(actor=self.principal, token_id=self.kwargs["token_id"])
        return no_content_response()
