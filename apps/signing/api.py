"""Signing keys over HTTP."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import ClassVar

from rest_framework.request import Request
from rest_framework.response import Response

from apps.access.api import ScopedView
from apps.access.roles import Permission
from apps.core.api import keyset_page, status_filter
from apps.signing.models import KeyStatus, SigningKey
from apps.signing.services import key_document


class SigningKeysView(ScopedView):
    """GET: the organization's keys, also for people who have a role on one of its projects only."""

    level: ClassVar[str] = "organization"
    permissions: ClassVar[Mapping[str, Permission]] = {"GET": Permission.GLANCE_ORG}

    def get(self, request: Request, org_id: uuid.UUID) -> Response:
        rows = SigningKey.objects.filter(organization_id=org_id)
        return keyset_page(request, rows, key_document, filters={"status": status_filter(KeyStatus.values)})
