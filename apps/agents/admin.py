"""Admin pages of agents and enrollment tokens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.http import HttpRequest
from django.utils.html import format_html_join
from rest_framework.exceptions import ValidationError

from apps.access.policy import require
from apps.access.principals import Principal
from apps.access.roles import Permission
from apps.access.selectors import environments_where
from apps.agents import reported_metrics
from apps.agents.models import Agent, EnrollmentToken, Liveness
from apps.agents.registry import desired_source
from apps.agents.selectors import warnings_about
from apps.agents.services import create_enrollment_token, delete_enrollment_token, remove_agent
from apps.agents.services.enrollment import MOST_USES
from apps.api.serializers import StringMapField
from apps.console.base.filters import SCOPE_FILTERS
from apps.console.base.forms import ServiceForm
from apps.console.base.model_admin import ScopedModelAdmin
from apps.console.base.principal import principal_of
from apps.console.base.ui import status_badge
from apps.core import clock
from apps.core.visible import visible
from apps.tenancy.selectors import scope_of


class LivenessFilter(admin.SimpleListFilter):
    """Filter by liveness."""

    title = "liveness"
    parameter_name = "liveness"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(value, value) for value in Liveness.values]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        value = self.value()
        return queryset.with_liveness(value, clock.now()) if value in Liveness.values else queryset


class _TokenForm(ServiceForm):
    """Form of a new enrollment token."""

    max_uses = forms.IntegerField(
        min_value=1, max_value=MOST_USES, initial=1, help_text=f"How many agents may enroll with it, 1 to {MOST_USES}."
    )
    labels = forms.JSONField(
        required=False,
        help_text='Given to every agent that enrolls with it: an object of strings, {"site": "berlin"}. Empty for none.',
    )

    def clean_labels(self) -> dict[str, str]:
        """Validate the labels by the rules of the API."""
        given = self.cleaned_data["labels"]
        try:
            labels: dict[str, str] = StringMapField().run_validation({} if given in (None, "") else given)
        except ValidationError as error:
            raise forms.ValidationError(_first_sentence(error.detail)) from error
        return labels


def _first_sentence(detail: Any) -> str:
    while isinstance(detail, dict | list):
        detail = next(iter(detail.values() if isinstance(detail, dict) else detail))
    return str(detail)


def _listed(lines: Iterable[str]) -> str:
    """Render one line per text, with hidden characters as escapes, and a dash for none. The texts come from hosts."""
    return format_html_join("", "<div>{}</div>", ((visible(line),) for line in lines)) or "-"


@admin.register(Agent)
class AgentAdmin(ScopedModelAdmin):
    """Agents and what they run."""

    list_display = ("name", "state", "where", "version", "running_bundle", "last_seen_at")
    search_fields = ("name", "hostname")
    list_filter = (LivenessFilter, *SCOPE_FILTERS)
    exclude = ("directive_content", "recent_starts")

    @admin.display(description="status")
    def state(self, row: Agent) -> str:
        return status_badge(row.status)

    @admin.display(description="runs")
    def running_bundle(self, row: Agent) -> str:
        return (row.running_bundle_sha256 or "")[:12] or "nothing"

    def get_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        """The model's fields, with warnings first and the counters by group."""
        fields = super().get_fields(request, obj)
        at = fields.index("metrics_shown")
        return ["warnings", *fields[:at], "records", "refusals", "rule_matches", "tuning", *fields[at + 1 :]]

    @admin.display(description="warnings")
    def warnings(self, row: Agent) -> str:
        return _listed(warning.detail for warning in warnings_about([row], clock.now()))

    @admin.display(description="records, by stage")
    def records(self, row: Agent) -> str:
        counted = reported_metrics.stages_of(row.metrics)
        lanes = reported_metrics.lanes_of(row.metrics)
        return _listed(
            [
                *(f"{c.stage}: {c.received} received, {c.forwarded} forwarded, {c.refused} refused" for c in counted),
                *(f"{name}: {dropped} of {received} dropped on a full lane" for name, received, dropped in lanes),
            ]
        )

    @admin.display(description="refused records, by code")
    def refusals(self, row: Agent) -> str:
        counted = reported_metrics.stages_of(row.metrics)
        return _listed([f"{c.stage}: {code}: {number}" for c in counted for code, number in c.codes.items()])

    @admin.display(description="matches of each rule")
    def rule_matches(self, row: Agent) -> str:
        rules = desired_source().running_detail(row).rules
        return _listed(
            [
                f"{match.stage}: {match.rule}: " + (str(match.hits) if match.hits else "never matched")
                for match in reported_metrics.matches_of(row.metrics, rules)
            ]
        )

    @admin.display(description="tuning")
    def tuning(self, row: Agent) -> str:
        tuning = desired_source().running_detail(row).tuning
        return _listed(
            [
                f"{name}: {reported_metrics.describe_counts(tuning[name])}"
                for name in ("requested", "applied", "degraded")
                if name in tuning
            ]
        )

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return obj is not None and self.allows(request, Permission.OPERATE_ENVIRONMENT, self.scope_for_row(obj))

    def delete_through(self, request: HttpRequest, row: Any, force: bool) -> None:
        remove_agent(actor=principal_of(request), scope=self.scope_for_row(row), agent_id=row.pk, force=force)

    def deletion_blockers(self, row: Any) -> list[str]:
        return desired_source().removal_blockers(row)

    def deletion_consequences(self, row: Any) -> list[str]:
        return [
            f"{row.name} can't return under this identity: its key is revoked at once, and the host has to enroll again.",
            "The host keeps running its current bundle. The control plane can't reach it any more.",
            "Its name becomes available. Deployments keep the agent in their history.",
        ]


@admin.register(EnrollmentToken)
class EnrollmentTokenAdmin(ScopedModelAdmin):
    """Enrollment tokens. Their text is shown once."""

    form = _TokenForm
    list_display = ("__str__", "public_id", "where", "uses", "max_uses", "expires_at", "revoked_at")
    list_filter = SCOPE_FILTERS
    search_fields = ("name", "public_id")
    audit_kind = "enrollment_token"
    fields = ("environment", "name", "max_uses", "labels", "public_id", "uses", "expires_at", "revoked_at")
    readonly_fields = ("public_id", "uses", "expires_at", "revoked_at")

    def may_add(self, who: Principal) -> bool:
        return environments_where(who, Permission.OPERATE_ENVIRONMENT).exists()

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return obj is not None and self.allows(request, Permission.OPERATE_ENVIRONMENT, self.scope_for_row(obj))

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name == "environment":
            rows = environments_where(principal_of(request), Permission.OPERATE_ENVIRONMENT)
            kwargs["queryset"] = rows.select_related("project").order_by("project__name", "name")
        return super().formfield_for_foreignkey(db_field, request, **kwargs)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Create a token through the service, and show its text once in a message."""
        who, data = principal_of(request), form.cleaned_data
        scope = scope_of(data["environment"])
        require(who, Permission.OPERATE_ENVIRONMENT, scope)
        row, text = create_enrollment_token(
            actor=who, scope=scope, name=data["name"], max_uses=data["max_uses"], labels=data["labels"] or {}
        )
        obj.__dict__.update(row.__dict__)
        messages.warning(request, f"The enrollment token, shown once: {text.reveal()}")

    def delete_through(self, request: HttpRequest, row: Any, force: bool) -> None:
        delete_enrollment_token(actor=principal_of(request), scope=self.scope_for_row(row), token_id=row.pk)

    def deletion_consequences(self, row: Any) -> list[str]:
        return [
            "No agent can enroll with it any more.",
            "Agents that enrolled with it stay enrolled and keep their labels.",
        ]
