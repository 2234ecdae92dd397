"""Admin of approvals: the list, and the live page on which an approval is decided."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.validators import ProhibitNullCharactersValidator
from django.db.models import Count
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.text import Truncator

from apps.approvals.models import Approval, ApprovalStatus, Decision
from apps.approvals.selectors import current_facts, effective_status, with_effective_status
from apps.approvals.services import decide, revoke
from apps.console.approval_page import approval_page, deployment_of, title_of
from apps.console.base.filters import SCOPE_FILTERS
from apps.console.base.principal import principal_of
from apps.console.base.ui import status_badge
from apps.console.changes import changes_of, names_of
from apps.console.deployment_admin import DeploymentAdmin
from apps.console.deployment_page import name_of
from apps.console.live import LivePage
from apps.console.live_admin import LivePageAdmin
from apps.core.errors import BadRequest
from apps.deployments.blocked import blockers_of
from apps.deployments.models import Deployment, Target
from apps.tenancy.selectors import scope_of

__all__ = ["ApprovalAdmin", "DeploymentAdmin"]


class DecisionForm(forms.Form):
    """A decision on the shown state: `{decision, comment, shown_digest}`."""

    decision = forms.ChoiceField(choices=[("approve", "approve"), ("deny", "deny"), ("revoke", "revoke")])
    comment = forms.CharField(
        required=False, max_length=2000, strip=True, validators=[ProhibitNullCharactersValidator()]
    )
    shown_digest = forms.CharField(required=False, max_length=80, validators=[ProhibitNullCharactersValidator()])


class ShownStatus(admin.SimpleListFilter):
    """Filter by the status that the list shows."""

    title = "status"
    parameter_name = "status__exact"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(str(value), str(label)) for value, label in ApprovalStatus.choices]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        value = self.value()
        return with_effective_status(queryset, value) if value in ApprovalStatus.values else queryset


@admin.register(Approval)
class ApprovalAdmin(LivePageAdmin):
    """Admin of approvals: the changes, and the decision on them."""

    text_field = "comment"
    already = {
        "approved": "It is already approved.",
        "denied": "It was already denied.",
        "expired": "It has expired.",
        "revoked": "It was already withdrawn or stopped.",
    }

    list_display = (
        "what", "where", "state", "votes", "requested_by_name", "reason_begins", "agents", "created_at", "expires_at",
    )  # fmt: skip
    list_filter = (ShownStatus, *SCOPE_FILTERS)
    search_fields = ("requested_by_name", "reason", "environment__name", "environment__project__name")

    def prepare_rows(self, rows: list[Any]) -> None:
        ids = [row.deployment_id for row in rows if row.deployment_id is not None]
        deployments = {row.pk: row for row in Deployment.objects.filter(pk__in=ids)}
        given = Decision.objects.filter(approval__in=[row.pk for row in rows], decision="approve")
        counts = dict(given.values_list("approval_id").annotate(people=Count("reviewer_id", distinct=True)))
        for row in rows:
            row.deployment = deployments.get(row.deployment_id)
            row.people = counts.get(row.pk, 0)

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> tuple[Any, bool]:
        """Search as in every list, and by pipeline name."""
        found, may_repeat = super().get_search_results(request, queryset, search_term)
        if search_term:
            named = Deployment.objects.filter(pipeline_name__icontains=search_term).values("pk")
            found |= queryset.filter(deployment_id__in=named)
        return found, may_repeat

    @admin.display(description="request")
    def what(self, row: Any) -> str:
        """The pipeline and version that approval is requested for, or the kind of request."""
        return name_of(row.deployment) if row.deployment is not None else str(row.get_action_display())

    @admin.display(description="status", ordering="status")
    def state(self, row: Approval) -> str:
        """The effective status, including expiry."""
        return status_badge(effective_status(row))

    @admin.display(description="approvals")
    def votes(self, row: Any) -> str:
        """Approvals given, of those required. The page itself marks votes that no longer count."""
        return f"{row.people} of {row.required_approvals}"

    @admin.display(description="reason")
    def reason_begins(self, row: Approval) -> str:
        """The reason, truncated for the list."""
        return Truncator(row.reason).chars(60) or "–"

    @admin.display(description="agents")
    def agents(self, row: Approval) -> int:
        """Number of agents."""
        return len(row.target_agent_ids)

    def get_urls(self) -> list[URLPattern]:
        compare = self.admin_site.admin_view(self.compare_view)
        name = "approvals_approval_compare"
        return [path("<uuid:object_id>/compare/<str:base>/", compare, name=name), *super().get_urls()]

    def compare_view(self, request: HttpRequest, object_id: Any, base: str) -> HttpResponse:
        """Show the full comparison for the agents of one base."""
        approval = self.object_or_404(request, str(object_id))
        deployment = deployment_of(approval)
        if deployment is None:
            raise Http404
        names = names_of(Target.objects.filter(deployment=deployment).values_list("agent_id", "agent_name"))
        changes = changes_of(approval, current_facts(approval).base, deployment, names, only=base)
        group = next((group for group in changes.groups if group.key == base), None)
        if group is None:
            raise Http404
        context = {**self.page_context(request, approval), "group": group}
        return TemplateResponse(request, "admin/approvals/approval/compare.html", context)

    def page_of(self, request: HttpRequest, row: Any, *, text: str = "", polled: bool = False) -> LivePage:
        return approval_page(request, row, principal_of(request), comment=text, polled=polled)

    def page_context(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        title = title_of(row, deployment_of(row))
        return {**super().page_context(request, row), "approval": row, "title": title}

    def act(self, request: HttpRequest, row: Any) -> None:
        who, scope = principal_of(request), scope_of(row.environment)
        form = DecisionForm(request.POST)
        if not form.is_valid():
            texts = " ".join(str(text) for texts in form.errors.values() for text in texts)
            raise BadRequest(texts, code="invalid_input")
        word, comment = form.cleaned_data["decision"], form.cleaned_data["comment"]
        if word == "revoke":
            was = row.status
            revoke(actor=who, scope=scope, approval_id=row.pk, comment=comment)
            pending = was == ApprovalStatus.PENDING.value
            messages.success(request, "You withdrew your request." if pending else "Stopped.")
            return
        decided = decide(
            actor=who,
            scope=scope,
            approval_id=row.pk,
            decision=word,
            comment=comment,
            shown_digest=form.cleaned_data["shown_digest"],
        )
        messages.success(request, _done(decided))


def _done(approval: Approval) -> str:
    """Describe the result of a decision."""
    if approval.status == ApprovalStatus.DENIED.value:
        return "Denied. The requester can read your comment."
    if approval.status == ApprovalStatus.PENDING.value:
        given, needed = current_facts(approval).approvals, approval.required_approvals
        more = "one more approval" if needed - given == 1 else f"{needed - given} more approvals"
        return f"Approved, {given} of {needed}: it needs {more}."
    deployment = Deployment.objects.filter(approval_id=approval.pk).first()
    if deployment is None:
        return "Approved."
    waits = blockers_of(deployment)
    if waits:
        names = ", ".join(f"{item.deployment.pipeline_name} v{item.deployment.version_number}" for item in waits)
        return f"Approved. It starts after {names}, which uses some of the same agents."
    return "Approved. The bundle is being built and signed; agents download it within seconds."
