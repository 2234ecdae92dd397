"""API of signing keys."""

from __future__ import annotations

from typing import TypedDict

from rest_framework.request import Request
from rest_framework.response import Response

from apps.access.roles import Permission
from apps.api.base import ScopedView
from apps.api.documents import document
from apps.api.operations import operation
from apps.api.parameters import status_filter
from apps.api.serializers import StrictCharField, StrictSerializer
from apps.core.db import require_row
from apps.runtime import trust
from apps.signing.models import KeyStatus, SigningKey
from apps.signing.services import REASON_LENGTH, retire, revoke, rotate, trusted
from apps.tenancy.scope import Scope

VIEW = Permission.VIEW_ORG_SUMMARY
MANAGE = Permission.MANAGE_ORG_MEMBERSHIPS
"""Of org_admin only."""


class KeyDocument(TypedDict):
    """A signing key: its public part and status. `public_key` is base64 of the raw key."""

    kid: str
    algorithm: str
    public_key: str
    public_key_pem: str
    status: str
    not_before: str
    not_after: str | None
    created_at: str
    revoked_at: str | None
    reason: str


def key_document(row: SigningKey) -> KeyDocument:
    """Return the API representation of a key."""
    public = trusted(row).as_dict()
    return document(
        KeyDocument,
        row,
        algorithm=public["algorithm"],
        public_key=public["public_key"],
        public_key_pem=trust.public_key_pem(bytes(row.public_key)),
    )


class ReasonInput(StrictSerializer):
    """An optional `reason`."""

    reason = StrictCharField(max_length=REASON_LENGTH, required=False, default="", allow_blank=True)


class SigningKeysView(ScopedView):
    """Signing keys of an organization."""

    level = "organization"

    @operation(VIEW, lists=KeyDocument, filters={"status": status_filter(KeyStatus.values)})
    def get(self, request: Request) -> Response:
        """List the organization's signing keys. A role on one of its projects is sufficient."""
        return self.page(SigningKey.objects.filter(organization_id=self.scope.organization_id), key_document)

    @operation(MANAGE, body=ReasonInput, answer=KeyDocument, status=201, errors=("too_many_keys", "no_active_key"))
    def post(self, request: Request) -> Response:
        """Rotate the signing key: create a new active key and retire the current one. Returns the new key."""
        made = rotate(actor=self.principal, scope=self.scope, reason=self.given["reason"])
        return Response(key_document(made), status=201)


def get_key(scope: Scope, kid: str) -> SigningKey:
    """Return the organization's key. Raises NotFound."""
    return require_row(SigningKey, organization=scope.organization, kid=kid)


class _KeyView(ScopedView):
    """Base of the actions on one key."""

    lookup = get_key
    level = "organization"
    found: SigningKey


class RetireView(_KeyView):
    """Retirement of a signing key."""

    @operation(MANAGE, body=ReasonInput, answer=KeyDocument, errors=("last_active_key",))
    def post(self, request: Request) -> Response:
        """Retire a signing key. It signs nothing more, and its signatures stay valid."""
        return Response(key_document(retire(scope=self.scope, kid=self.found.kid)))


class RevokeView(_KeyView):
    """Revocation of a signing key."""

    @operation(MANAGE, body=ReasonInput, answer=KeyDocument, errors=("last_active_key",))
    def post(self, request: Request) -> Response:
        """Revoke a signing key. None of its signatures verify from then on."""
        key = revoke(actor=self.principal, scope=self.scope, kid=self.found.kid, reason=self.given["reason"])
        return Response(key_document(key))
