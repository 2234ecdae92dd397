"""Admin list of audit events (read-only)."""

from __future__ import annotations

from typing import Any

from django.contrib import admin

from apps.audit.models import AuditEvent
from apps.console.base.model_admin import ScopedModelAdmin


@admin.register(AuditEvent)
class AuditEventAdmin(ScopedModelAdmin):
    """Audit events: an organization's for its administrators, all of them for platform staff."""

    list_display = ("created_at", "action", "actor_name", "target", "outcome")
    list_filter = ("outcome",)
    list_select_related = ()
    search_fields = ("action", "actor_name", "target")
    ordering = ("-id",)

    def scope_for_row(self, row: Any) -> Any:
        raise TypeError("an audit event belongs to no node")
