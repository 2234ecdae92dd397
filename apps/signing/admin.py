"""Signing keys, to read; never their private part."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet

from apps.access.admin import ScopedModelAdmin, pill
from apps.access.principals import Principal
from apps.access.selectors import organizations_visible_to
from apps.runtime.trust import public_key_pem
from apps.signing.models import SigningKey
from apps.tenancy.scope import Scope


@admin.register(SigningKey)
class SigningKeyAdmin(ScopedModelAdmin):
    """The organization's keys."""

    list_display = ("kid", "organization", "state", "not_before")
    list_select_related = ("organization",)
    fields = ("organization", "kid", "state", "pem", "not_before", "not_after", "created_at")

    def visible(self, rows: QuerySet[Any], principal: Principal) -> QuerySet[Any]:
        return rows.filter(organization__in=organizations_visible_to(principal).values("pk"))

    def place_of(self, row: Any) -> Scope:
        return Scope(row.organization)

    @admin.display(description="status", ordering="status")
    def state(self, row: SigningKey) -> str:
        return pill(row.status)

    @admin.display(description="public key")
    def pem(self, row: SigningKey) -> str:
        return public_key_pem(bytes(row.public_key))
