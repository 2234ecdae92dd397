"""The approval and deployment pages: they span rooms, so they are registered here."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse

from apps.access.admin import ScopedModelAdmin, pill, principal_of, tell
from apps.access.policy import can, require
from apps.access.roles import Permission
from apps.approvals.models import Approval
from apps.approvals.services import decide, revoke
from apps.console.review import live_state, review
from apps.console.rollout import history_of, rollout_of
from apps.core.errors import BadRequest, ServiceError
from apps.core.fsm import allowed_from
from apps.deployments import services as deployments
from apps.deployments.models import Deployment
from apps.deployments.selectors import needing_redeployment, still_run, targets_of
from apps.tenancy.selectors import scope_of

DONE = {"approve": "You approved it.", "deny": "You denied it.", "revoke": "The approval is taken back."}


@admin.register(Approval)
class ApprovalAdmin(ScopedModelAdmin):
    """Approvals: what changes, and the decision on it."""

    list_display = ("__str__", "state", "environment", "requested_by_name", "created_at", "expires_at")
    list_filter = ("status", "action")
    list_select_related = ("environment",)
    ordering = ("-id",)

    @admin.display(description="status", ordering="status")
    def state(self, row: Approval) -> str:
        return pill(str(row.status))

    def get_urls(self) -> list[URLPattern]:
        live = path(
            "<uuid:object_id>/state/", self.admin_site.admin_view(self.state_view), name="approvals_approval_state"
        )
        return [live, *super().get_urls()]

    def state_view(self, request: HttpRequest, object_id: Any) -> HttpResponse:
        """What the page polls."""
        approval = self.object_or_404(request, str(object_id))
        deployment = Deployment.objects.filter(approval_id=approval.pk).first()
        return JsonResponse(live_state(deployment, approval), headers={"Cache-Control": "no-store"})

    def change_view(self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None) -> Any:
        approval = self.object_or_404(request, object_id)
        status, refusal = 200, None
        comment = ""
        if request.method == "POST":
            comment = request.POST.get("comment", "")[:2000]
            try:
                self._decide(request, approval, comment)
            except ServiceError as error:
                status, refusal = error.status, error
            else:
                return HttpResponseRedirect(request.path)
            approval = self.object_or_404(request, object_id)
        who = principal_of(request)
        context = {
            **self.admin_site.each_context(request),
            "opts": self.model._meta,
            "title": f"Approval · {approval.environment}",
            "page": review(approval, who),
            "refusal": refusal,
            "comment": comment,
            "state_url": reverse("admin:approvals_approval_state", args=[approval.pk]),
        }
        return TemplateResponse(request, "admin/approvals/approval/page.html", context, status=status)

    def _decide(self, request: HttpRequest, approval: Approval, comment: str) -> None:
        who, scope = principal_of(request), scope_of(approval.environment)
        word = request.POST.get("decision", "")
        if word == "revoke":
            revoke(actor=who, scope=scope, approval_id=approval.pk, comment=comment)
        elif word in ("approve", "deny"):
            decide(
                actor=who,
                scope=scope,
                approval_id=approval.pk,
                decision=word,
                comment=comment,
                shown_digest=request.POST.get("shown_digest", ""),
            )
        else:
            raise BadRequest("The decision is approve, deny or revoke.", code="invalid_input")
        messages.success(request, DONE[word])


class DeployAgain(admin.SimpleListFilter):
    """What runs under a signing key that was revoked."""

    title = "deploy again"
    parameter_name = "needs_redeployment"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("true", "Signed by a revoked key")]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        return needing_redeployment(queryset, True) if self.value() == "true" else queryset


@admin.register(Deployment)
class DeploymentAdmin(ScopedModelAdmin):
    """Deployments, live."""

    list_display = ("__str__", "state", "signed_by", "environment", "requested_by_name", "created_at")
    list_filter = ("status", DeployAgain)
    list_select_related = ("environment",)
    ordering = ("-id",)

    @admin.display(description="status", ordering="status")
    def state(self, row: Deployment) -> str:
        return pill(str(row.status))

    @admin.display(description="signed by")
    def signed_by(self, row: Deployment) -> str:
        return pill("key revoked") if row.key_revoked_at is not None else row.signing_kid[:10] or "–"

    def get_urls(self) -> list[URLPattern]:
        wrap = self.admin_site.admin_view
        return [
            path("<uuid:object_id>/state/", wrap(self.state_view), name="deployments_deployment_state"),
            *super().get_urls(),
        ]

    def state_view(self, request: HttpRequest, object_id: Any) -> HttpResponse:
        """What the page polls."""
        deployment = self.object_or_404(request, str(object_id))
        approval = Approval.objects.filter(pk=deployment.approval_id).first()
        state = live_state(deployment, approval)
        state["history"] = [happening.as_dict() for happening in history_of(deployment)]
        return JsonResponse(state, headers={"Cache-Control": "no-store"})

    def change_view(self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None) -> Any:
        deployment = self.object_or_404(request, object_id)
        status = 200
        if request.method == "POST":
            try:
                self._act(request, deployment)
            except ServiceError as error:
                tell(request, error)
                status = error.status
            else:
                return HttpResponseRedirect(request.path)
            deployment = self.object_or_404(request, object_id)
        scope = scope_of(deployment.environment)
        context = {
            **self.admin_site.each_context(request),
            "opts": self.model._meta,
            "title": f"Deployment · {deployment.environment}",
            "deployment": deployment,
            "targets": targets_of(deployment),
            "history": history_of(deployment),
            "rollout": rollout_of(deployment),
            "allowed": allowed_from(deployment),
            "needs_redeployment": deployment.key_revoked_at is not None and bool(still_run([deployment.pk])),
            "may_operate": bool(can(principal_of(request), Permission.OPERATE_ENVIRONMENT, scope)),
            "live": live_state(deployment, None),
            "state_url": reverse("admin:deployments_deployment_state", args=[deployment.pk]),
        }
        return TemplateResponse(request, "admin/deployments/deployment/page.html", context, status=status)

    def _act(self, request: HttpRequest, deployment: Deployment) -> None:
        who, scope = principal_of(request), scope_of(deployment.environment)
        require(who, Permission.OPERATE_ENVIRONMENT, scope)
        reason = request.POST.get("reason", "")[:2000]
        word = request.POST.get("action", "")
        if word == "rollback":
            deployments.rollback(actor=who, scope=scope, deployment_id=deployment.pk, reason=reason)
        elif word == "cancel":
            deployments.cancel(actor=who, scope=scope, deployment_id=deployment.pk, reason=reason)
        else:
            raise BadRequest("The action is rollback or cancel.", code="invalid_input")
        messages.success(request, "It is on its way.")
