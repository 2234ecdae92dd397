"""Admin of deployments: the list, and the live page of a deployment."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.validators import ProhibitNullCharactersValidator
from django.http import HttpRequest

from apps.access.policy import require
from apps.access.roles import Permission
from apps.console.base.filters import SCOPE_FILTERS
from apps.console.base.principal import principal_of
from apps.console.base.ui import status_badge
from apps.console.deployment_page import live_page, name_of
from apps.console.live import LivePage
from apps.console.live_admin import LivePageAdmin
from apps.core.errors import Unprocessable
from apps.deployments import services as deployments
from apps.deployments.models import Deployment, DeploymentStatus, describe_counts
from apps.deployments.selectors import needing_redeployment, overviews
from apps.tenancy.selectors import scope_of

CANCEL, ROLL_BACK = "cancel", "rollback"
DONE = {CANCEL: "Cancelled.", ROLL_BACK: "Rollback requested."}


class ActionForm(forms.Form):
    """An action on a deployment: `{action, reason}`."""

    action = forms.ChoiceField(choices=[(CANCEL, "cancel"), (ROLL_BACK, "roll back")])
    reason = forms.CharField(
        required=False, max_length=LivePageAdmin.text_length, strip=True, validators=[ProhibitNullCharactersValidator()]
    )


class DeployAgain(admin.SimpleListFilter):
    """Filter for deployments that run under a revoked signing key."""

    title = "deploy again"
    parameter_name = "needs_redeployment"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("true", "Signed by a revoked key")]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        return needing_redeployment(queryset, True) if self.value() == "true" else queryset


@admin.register(Deployment)
class DeploymentAdmin(LivePageAdmin):
    """Deployments, live."""

    text_field = "reason"
    already = {
        "denied": "It was already cancelled.",
        "rolling_back": "It is already rolling back.",
        "rolled_back": "It was already rolled back.",
    }

    list_display = ("what", "where", "state", "progress", "requested_by_name", "signed_by", "created_at")
    list_filter = ("status", *SCOPE_FILTERS, DeployAgain)
    search_fields = ("pipeline_name", "requested_by_name", "reason", "environment__name", "environment__project__name")

    def prepare_rows(self, rows: list[Any]) -> None:
        found = overviews(rows)
        for row in rows:
            row.target_counts = found[row.pk].counts

    @admin.display(description="deployment", ordering="pipeline_name")
    def what(self, row: Deployment) -> str:
        """Pipeline and version."""
        return name_of(row)

    @admin.display(description="status", ordering="status")
    def state(self, row: Deployment) -> str:
        """The status; for an active deployment also whether it is current or superseded."""
        if row.status == DeploymentStatus.ACTIVE.value:
            if row.superseded_by is not None:
                return status_badge("superseded")
            if row.environment.current_deployment_id == row.pk:
                return status_badge("runs now")
        return status_badge(str(row.status))

    @admin.display(description="agents")
    def progress(self, row: Any) -> str:
        """Number of targets, in total and by status."""
        counts = row.target_counts
        return f"{counts['total']}: {describe_counts(counts)}"

    @admin.display(description="signed by")
    def signed_by(self, row: Deployment) -> str:
        return status_badge("key revoked") if row.key_revoked_at is not None else row.signing_kid[:10] or "–"

    def page_of(self, request: HttpRequest, row: Any, *, text: str = "", polled: bool = False) -> LivePage:
        return live_page(request, row, principal_of(request), reason=text)

    def page_context(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        return {**super().page_context(request, row), "deployment": row, "title": name_of(row)}

    def act(self, request: HttpRequest, row: Any) -> None:
        who, scope = principal_of(request), scope_of(row.environment)
        require(who, Permission.OPERATE_ENVIRONMENT, scope)
        form = ActionForm(request.POST)
        if not form.is_valid():
            raise Unprocessable(
                " ".join(str(text) for texts in form.errors.values() for text in texts), code="invalid_input"
            )
        word, reason = form.cleaned_data["action"], form.cleaned_data["reason"]
        act = deployments.rollback if word == ROLL_BACK else deployments.cancel
        act(actor=who, scope=scope, deployment_id=row.pk, reason=reason)
        messages.success(request, DONE[word])
