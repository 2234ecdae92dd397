"""Admin of deployments: the list, and the live page of a deployment."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.validators import ProhibitNullCharactersValidator
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse

from apps.access.policy import require
from apps.access.roles import Permission
from apps.console.base.filters import SCOPE_FILTERS
from apps.console.base.model_admin import ScopedModelAdmin
from apps.console.base.principal import principal_of
from apps.console.base.ui import status_badge
from apps.console.deployment_page import live_page, name_of
from apps.console.live import live_answer
from apps.core.errors import ServiceError, StateConflict, Unprocessable
from apps.deployments import services as deployments
from apps.deployments.models import Deployment, DeploymentStatus, describe_counts
from apps.deployments.selectors import needing_redeployment, overviews
from apps.tenancy.selectors import scope_of

CANCEL, ROLL_BACK = "cancel", "rollback"
DONE = {CANCEL: "Cancelled.", ROLL_BACK: "Rollback requested."}
ALREADY = {
    "denied": "It was already cancelled.",
    "rolling_back": "It is already rolling back.",
    "rolled_back": "It was already rolled back.",
}
REASON_LENGTH = 2000


class ActionForm(forms.Form):
    """An action on a deployment: `{action, reason}`."""

    action = forms.ChoiceField(choices=[(CANCEL, "cancel"), (ROLL_BACK, "roll back")])
    reason = forms.CharField(
        required=False, max_length=REASON_LENGTH, strip=True, validators=[ProhibitNullCharactersValidator()]
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
class DeploymentAdmin(ScopedModelAdmin):
    """Deployments, live."""

    list_display = ("what", "where", "state", "progress", "requested_by_name", "signed_by", "created_at")
    list_filter = ("status", *SCOPE_FILTERS, DeployAgain)
    search_fields = ("pipeline_name", "requested_by_name", "reason", "environment__name", "environment__project__name")
    ordering = ("-id",)

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

    def get_urls(self) -> list[URLPattern]:
        wrap = self.admin_site.admin_view
        return [
            path("<uuid:object_id>/state/", wrap(self.state_view), name="deployments_deployment_state"),
            *super().get_urls(),
        ]

    def state_view(self, request: HttpRequest, object_id: Any) -> HttpResponse:
        """Answer a poll of the live page with the cards that changed."""
        deployment = self.object_or_404(request, str(object_id))
        return live_answer(request, live_page(request, deployment, principal_of(request)))

    def change_view(self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None) -> Any:
        deployment = self.object_or_404(request, object_id)
        status, refusal, reason, headers = 200, None, "", {}
        if request.method == "POST":
            reason = request.POST.get("reason", "")[:REASON_LENGTH]
            try:
                self._act(request, deployment)
            except ServiceError as error:
                status, refusal, headers = error.status, error, dict(error.headers)
            else:
                return HttpResponseRedirect(request.get_full_path())
            deployment = self.object_or_404(request, object_id)
        page = live_page(request, deployment, principal_of(request), reason=reason)
        state_url = reverse("admin:deployments_deployment_state", args=[deployment.pk])
        query = request.GET.urlencode()
        context = {
            **self.admin_site.each_context(request),
            "opts": self.model._meta,
            "title": name_of(deployment),
            "where": f"{deployment.environment.project.name} / {deployment.environment.name}",
            "tab_title": page.title,
            "deployment": deployment,
            "page": page,
            "refusal": refusal,
            "live_url": f"{state_url}?{query}" if query else state_url,
        }
        return TemplateResponse(
            request, "admin/deployments/deployment/page.html", context, status=status, headers=headers
        )

    def _act(self, request: HttpRequest, deployment: Deployment) -> None:
        who, scope = principal_of(request), scope_of(deployment.environment)
        require(who, Permission.OPERATE_ENVIRONMENT, scope)
        form = ActionForm(request.POST)
        if not form.is_valid():
            raise Unprocessable(
                " ".join(str(text) for texts in form.errors.values() for text in texts), code="invalid_input"
            )
        word, reason = form.cleaned_data["action"], form.cleaned_data["reason"]
        act = deployments.rollback if word == ROLL_BACK else deployments.cancel
        try:
            act(actor=who, scope=scope, deployment_id=deployment.pk, reason=reason)
        except StateConflict as error:
            # a second click, or a concurrent decision or action
            error.detail = ALREADY.get(error.from_, error.detail)
            raise
        messages.success(request, DONE[word])
