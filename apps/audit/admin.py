"""Audit events, to read."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from apps.access.admin import ScopedModelAdmin
from apps.access.principals import Principal
from apps.access.roles import Role
from apps.access.selectors import active_memberships
from apps.audit.models import AuditEvent


@admin.register(AuditEvent)
class AuditEventAdmin(ScopedModelAdmin):
    """The chain of my organizations, for their admins; all of it for platform staff."""

    list_display = ("created_at", "action", "actor_name", "target", "outcome")
    list_filter = ("outcome",)
    search_fields = ("action", "actor_name", "target")
    ordering = ("-id",)

    def visible(self, rows: QuerySet[Any], principal: Principal) -> QuerySet[Any]:
        if principal.is_superuser:
            return rows
        assert principal.id is not None
        mine = active_memberships(principal.id).filter(project__isnull=True, role=Role.ORG_ADMIN)
        return rows.filter(organization_id__in=mine.values("organization_id"))

    def place_of(self, row: Any) -> Any:
        raise TypeError("an audit event hangs on no node")

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.admin_site.has_permission(request)
