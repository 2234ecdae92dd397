"""Agents and enrollment tokens."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.http import HttpRequest

from apps.access.admin import ScopedModelAdmin, pill, principal_of
from apps.access.policy import require
from apps.access.roles import Permission
from apps.access.selectors import environments_where
from apps.agents.models import Agent, EnrollmentToken
from apps.agents.services import create_enrollment_token, delete_enrollment_token, remove_agent
from apps.tenancy.selectors import scope_of


@admin.register(Agent)
class AgentAdmin(ScopedModelAdmin):
    """Hosts and what they run."""

    list_display = ("name", "state", "environment", "version", "running_bundle", "last_seen_at")
    list_select_related = ("environment",)
    search_fields = ("name",)
    exclude = ("directive_content",)

    @admin.display(description="status")
    def state(self, row: Agent) -> str:
        return pill(row.status)

    @admin.display(description="runs")
    def running_bundle(self, row: Agent) -> str:
        return (row.running_bundle_sha256 or "")[:12] or "nothing"

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return obj is not None and self.allows(request, Permission.OPERATE_ENVIRONMENT, self.place_of(obj))

    def delete_through(self, request: HttpRequest, row: Any, force: bool) -> None:
        remove_agent(actor=principal_of(request), scope=self.place_of(row), agent_id=row.pk, force=force)


@admin.register(EnrollmentToken)
class EnrollmentTokenAdmin(ScopedModelAdmin):
    """Tokens for new agents; the text is shown once."""

    list_display = ("name", "public_id", "environment", "uses", "max_uses", "expires_at", "revoked_at")
    list_select_related = ("environment",)
    fields = ("environment", "name", "max_uses", "labels", "public_id", "uses", "expires_at", "revoked_at")

    def has_add_permission(self, request: HttpRequest) -> bool:
        if not self.admin_site.has_permission(request):
            return False
        return environments_where(principal_of(request), Permission.OPERATE_ENVIRONMENT).exists()

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return obj is not None and self.allows(request, Permission.OPERATE_ENVIRONMENT, self.place_of(obj))

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        return ["public_id", "uses", "expires_at", "revoked_at"] if obj is None else self.get_fields(request, obj)

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name == "environment":
            kwargs["queryset"] = environments_where(principal_of(request), Permission.OPERATE_ENVIRONMENT)
        return super().formfield_for_foreignkey(db_field, request, **kwargs)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """A new token, by the service; its text goes into a message, once."""
        who, data = principal_of(request), form.cleaned_data
        scope = scope_of(data["environment"])
        require(who, Permission.OPERATE_ENVIRONMENT, scope)
        row, text = create_enrollment_token(
            actor=who, scope=scope, name=data["name"], max_uses=data["max_uses"], labels=data["labels"] or {}
        )
        obj.__dict__.update(row.__dict__)
        messages.warning(request, f"The enrollment token, shown once: {text.reveal()}")

    def delete_through(self, request: HttpRequest, row: Any, force: bool) -> None:
        delete_enrollment_token(actor=principal_of(request), scope=self.place_of(row), token_id=row.pk)
