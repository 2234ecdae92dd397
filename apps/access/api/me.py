"""`/me`: who am I, and my personal tokens."""

from __future__ import annotations

import uuid

from rest_framework.request import Request
from rest_framework.response import Response

from apps.access.api.base import PersonView, no_content
from apps.access.models import Membership, PersonalToken
from apps.access.selectors import active_memberships
from apps.access.services import create_token, revoke_token
from apps.core.api import StrictSerializer, Text, WholeNumber, keyset_page, rfc3339


def role_document(row: Membership) -> dict[str, object]:
    """A role as `/me` shows it."""
    return {
        "organization_id": str(row.organization_id),
        "project_id": str(row.project_id) if row.project_id else None,
        "role": row.role,
    }


class MeView(PersonView):
    """GET: the person, and every role they hold."""

    def get(self, request: Request) -> Response:
        user = self.principal.user
        assert user is not None
        roles = active_memberships(user.pk).order_by("pk")
        return Response(
            {
                "id": str(user.pk),
                "kind": "person",
                "email": user.email,
                "name": user.name,
                "via": self.principal.via,
                "is_superuser": user.is_superuser,
                "roles": [role_document(row) for row in roles],
            }
        )


class TokenInput(StrictSerializer):
    """`{name, expires_in_seconds?}`."""

    name = Text()
    expires_in_seconds = WholeNumber(required=False)


def token_document(row: PersonalToken) -> dict[str, object]:
    """A personal token without its text."""
    return {
        "id": str(row.pk),
        "name": row.name,
        "prefix": row.public_id,
        "created_at": rfc3339(row.created_at),
        "expires_at": rfc3339(row.expires_at),
        "last_used_at": rfc3339(row.last_used_at),
        "revoked_at": rfc3339(row.revoked_at),
    }


class TokensView(PersonView):
    """GET: my tokens. POST: a new one, its text shown once."""

    def get(self, request: Request) -> Response:
        rows = PersonalToken.objects.filter(user=self.principal.user)
        return keyset_page(request, rows, token_document)

    def post(self, request: Request) -> Response:
        body = self.read(TokenInput)
        made = create_token(actor=self.principal, name=body["name"], expires_in_seconds=body.get("expires_in_seconds"))
        return Response({**token_document(made.row), "token": made.text.reveal()}, status=201)


class TokenView(PersonView):
    """DELETE: end one of my tokens at once."""

    def delete(self, request: Request, token_id: uuid.UUID) -> Response:
        revoke_token(actor=self.principal, token_id=token_id)
        return no_content()
