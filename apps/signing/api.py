"""Signing keys over HTTP."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import ClassVar

from rest_framework.request import Request
from rest_framework.response import Response

from apps.access.api import ScopedView
from apps.access.roles import Permission
from apps.core.api import StrictSerializer, Text, keyset_page, status_filter
from apps.core.errors import NotFound
from apps.signing.models import KeyStatus, SigningKey
from apps.signing.services import REASON_LENGTH, key_document, retire, revoke, rotate
from apps.tenancy.scope import Scope


class ReasonIn(StrictSerializer):
    """`{reason?}` or nothing."""

    reason = Text(max_length=REASON_LENGTH, required=False, default="", allow_blank=True)


class SigningKeysView(ScopedView):
    """GET: the organization's keys, also for people who have a role on one of its projects only. POST: rotate."""

    level: ClassVar[str] = "organization"
    # of the roles, org_admin alone has the second
    permissions: ClassVar[Mapping[str, Permission]] = {
        "GET": Permission.GLANCE_ORG,
        "POST": Permission.MANAGE_ORG_MEMBERSHIPS,
    }

    def get(self, request: Request, org_id: uuid.UUID) -> Response:
        rows = SigningKey.objects.filter(organization_id=org_id)
        return keyset_page(request, rows, key_document, filters={"status": status_filter(KeyStatus.values)})

    def post(self, request: Request, org_id: uuid.UUID) -> Response:
        given = self.read(ReasonIn)
        made = rotate(actor=self.principal, scope=self.scope, reason=given["reason"])
        return Response(key_document(made), status=201)


def get_key(scope: Scope, kid: str) -> SigningKey:
    """The organization's key. NotFound when it has none like it."""
    key: SigningKey | None = SigningKey.objects.filter(organization=scope.organization, kid=kid).first()
    if key is None:
        raise NotFound()
    return key


class _ActView(ScopedView):
    """What is done with one key."""

    finds = get_key
    level: ClassVar[str] = "organization"
    permissions: ClassVar[Mapping[str, Permission]] = {
        "GET": Permission.GLANCE_ORG,
        "POST": Permission.MANAGE_ORG_MEMBERSHIPS,
    }


class RetireView(_ActView):
    """POST: a key signs no more."""

    def post(self, request: Request, org_id: uuid.UUID, kid: str) -> Response:
        self.read(ReasonIn)
        return Response(key_document(retire(scope=self.scope, kid=kid)))


class RevokeView(_ActView):
    """POST: a key verifies nothing any more."""

    def post(self, request: Request, org_id: uuid.UUID, kid: str) -> Response:
        given = self.read(ReasonIn)
        key = revoke(actor=self.principal, scope=self.scope, kid=kid, reason=given["reason"])
        return Response(key_document(key))
