"""Admin pages of organizations, projects and environments. Every write calls a service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django import forms
from django.contrib import admin
from django.http import HttpRequest
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from apps.api.permissions import (
    Permission,
    Principal,
    can,
    may_on_some_organization,
    may_on_some_project,
    organizations_where,
    projects_where,
    require,
)
from apps.console.base.forms import RevisedForm, shown
from apps.console.base.model_admin import ScopedModelAdmin
from apps.console.base.principal import principal_of
from apps.console.base.ui import UNCHANGED
from apps.tenancy import registry, services
from apps.tenancy.models import Environment, Organization, Posture, Project
from apps.tenancy.registry import PolicyField
from apps.tenancy.scope import Scope
from apps.tenancy.selectors import rows_below, scope_of

MOST_COUNTED = 10_000


class NodeAdmin(ScopedModelAdmin):
    """Base of the admin pages of organizations, projects and environments."""

    search_fields = ("name", "slug")
    permission = Permission.MANAGE_PROJECT

    def scope_for_row(self, row: Any) -> Scope:
        return scope_of(row)

    def deletion_slug(self, row: Any) -> str | None:
        return str(row.slug)

    def deletion_blockers(self, row: Any) -> list[str]:
        return [text for guard in registry.deletion_guards for text in guard(scope_of(row))]

    def deletion_consequences(self, row: Any) -> list[str]:
        words = [text for note in registry.deletion_notes for text in note(scope_of(row))]
        return [*words, "Every credential below it is revoked at once. Audit events are kept."]

    def deletion_counts(self, row: Any) -> list[str]:
        counts = []
        for model in self.admin_site._registry:
            rows = rows_below(row, model)
            if rows is not None and (number := rows.order_by()[: MOST_COUNTED + 1].count()):
                names = model._meta.verbose_name if number == 1 else model._meta.verbose_name_plural
                counts.append(f"{number if number <= MOST_COUNTED else f'more than {MOST_COUNTED:,}'} {names}")
        return counts

    def may_manage(self, request: HttpRequest, row: Any) -> bool:
        """Return whether the user may manage the node: by role, and for platform staff on organizations."""
        who = principal_of(request)
        if who.is_superuser and isinstance(row, Organization):
            return True
        return bool(can(who, self.permission, scope_of(row)))

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return obj is not None and self.may_manage(request, obj)

    has_delete_permission = has_change_permission


POLICY, RETENTION = "policy_", "retention_days_"
LIMIT_HELP = {
    "max_in_flight_deployments": "Deployments that may be in progress at the same time.",
    "enrollments_per_minute": "Hosts that may enroll with a valid token.",
    "agent_upgrade_percent": "Share of the agents that may install the agent program of this control plane.",
}
ARTIFACT_LABELS = {
    "incident_bundle": "Days to keep incident captures",
    "snapshot": "Days to keep snapshots",
    "diagnostic": "Days to keep diagnostics",
}


class _NodeForm(RevisedForm):
    """Form with name and slug. An empty field of a new node gets a default; of an existing node it is refused."""

    name = forms.CharField(max_length=services.NAME_LENGTH)
    slug = forms.RegexField(
        r"\A[a-z0-9-]{1,63}\Z",
        required=False,
        error_messages={"invalid": "Lower-case letters, digits and hyphens, at most 63."},
        help_text="Identifies it in URLs: lower-case letters, digits and hyphens. Derived from the name if empty.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.instance._state.adding and "slug" in self.fields:
            self.fields["slug"].required = True
            self.fields["slug"].help_text = "Identifies it in URLs: lower-case letters, digits and hyphens."


def _copy_fields(obj: Any, made: Any) -> None:
    obj.__dict__.update(made.__dict__)


class _TreeAdmin(NodeAdmin):
    """Base of the three levels: form, list, creation and changes."""

    form = _NodeForm
    stored_fields = ("created_at",)

    def create(self, request: HttpRequest, data: Mapping[str, Any]) -> Any:
        """Create a node through its service, after checking the user's permission."""
        raise NotImplementedError

    def changes(self, obj: Any, form: _NodeForm) -> dict[str, Any]:
        """Return the edited fields of `obj`, as arguments of `update_node`."""
        return {name: form.cleaned_data[name] for name in ("name", "slug") if name in form.edited}

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Create or update through the service: only edited fields, and only if no other user changed the row first."""
        if not change:
            _copy_fields(obj, self.create(request, form.cleaned_data))
            return
        changes = self.changes(obj, form)
        if not changes:
            setattr(request, UNCHANGED, True)
            return
        services.update_node(actor=principal_of(request).ref, node=obj, expected_rev=form.rev_to_expect(), **changes)

    def delete_through(self, request: HttpRequest, row: Any, force: bool) -> None:
        services.delete_node(actor=principal_of(request).ref, scope=scope_of(row), force=force)


@admin.register(Organization)
class OrganizationAdmin(_TreeAdmin):
    """Tenants."""

    list_display = ("name", "slug", "created_at")
    fields = ("name", "slug")
    list_select_related = ()
    permission = Permission.MANAGE_ORG_MEMBERSHIPS

    def may_add(self, who: Principal) -> bool:
        return True

    def create(self, request: HttpRequest, data: Mapping[str, Any]) -> Organization:
        return services.create_organization(
            actor=principal_of(request).ref, name=data["name"], slug=data["slug"] or None
        )


@admin.register(Project)
class ProjectAdmin(_TreeAdmin):
    """Projects."""

    list_display = ("name", "slug", "organization", "created_at")
    list_select_related = ("organization",)
    fields = ("organization", "name", "slug")
    fixed_fields = ("organization",)

    def may_add(self, who: Principal) -> bool:
        return may_on_some_organization(who, Permission.MANAGE_PROJECT)

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name == "organization":
            kwargs["queryset"] = organizations_where(principal_of(request), Permission.MANAGE_PROJECT)
        return super().formfield_for_foreignkey(db_field, request, **kwargs)

    def create(self, request: HttpRequest, data: Mapping[str, Any]) -> Project:
        who = principal_of(request)
        require(who, Permission.MANAGE_PROJECT, Scope(data["organization"]))
        return services.create_project(
            actor=who.ref, organization=data["organization"], name=data["name"], slug=data["slug"] or None
        )


class _EnvironmentForm(_NodeForm):
    """Form of an environment with a field for each setting of its policy and limits."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        adding = self.instance._state.adding
        self.stored_settings = {
            "policy": dict(self.instance.policy),
            "retention_days": dict(self.instance.retention_days),
        }
        stored = {
            **{POLICY + name: value for name, value in self.instance.policy.items()},
            **{RETENTION + name: value for name, value in self.instance.retention_days.items()},
        }
        for name, field in self.fields.items():
            if name.startswith((POLICY, RETENTION)) and not adding:
                field.required = not isinstance(field, forms.BooleanField)
                if name in stored:
                    self.initial[name] = stored[name]


def _policy_form_field(field: PolicyField) -> forms.Field:
    if field.is_switch:
        return forms.BooleanField(
            label=field.label, help_text=field.help_text, required=False, initial=bool(field.default)
        )
    return forms.IntegerField(
        label=field.label,
        help_text=f"{field.help_text} From {field.low} to {field.high}.",
        required=False,
        initial=field.default,
        min_value=field.low,
        max_value=field.high,
    )


def _retention_form_field(name: str) -> forms.Field:
    return forms.IntegerField(
        label=ARTIFACT_LABELS[name],
        required=False,
        initial=services.DEFAULT_RETENTION_DAYS[name],
        min_value=1,
        max_value=3650,
        help_text="From 1 to 3650.",
    )


@admin.register(Environment)
class EnvironmentAdmin(_TreeAdmin):
    """Environments with their policy and limits."""

    list_display = ("name", "posture", "project", "created_at")
    list_filter = ("posture",)
    list_select_related = ("project__organization",)
    fixed_fields = ("project", "posture")
    permission = Permission.MANAGE_ENVIRONMENT

    def may_add(self, who: Principal) -> bool:
        return may_on_some_project(who, Permission.MANAGE_PROJECT)

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name == "project":
            rows = projects_where(principal_of(request), Permission.MANAGE_PROJECT)
            kwargs["queryset"] = rows.select_related("organization").order_by("organization__name", "name")
        return super().formfield_for_foreignkey(db_field, request, **kwargs)

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        first = ["project", "name", "slug", "posture"]
        limits = [*services.LIMITS]
        if obj is not None and not self.has_change_permission(request, obj):
            return [(None, {"fields": [*first, "policy_summary", *limits, "retention_summary", "created_at"]})]
        policy = [POLICY + field.name for field in registry.known_policy_fields]
        retention = [RETENTION + name for name in services.ARTIFACT_TYPES]
        last = [] if obj is None else ["created_at", "expected_rev"]
        weaker = "A user who weakens the policy can neither request nor decide here for 24 hours."
        return [
            (None, {"fields": first}),
            ("Approval policy", {"fields": policy, "description": weaker if obj is not None else ""}),
            ("Limits", {"fields": [*limits, *retention, *last]}),
        ]

    def get_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        return [name for _, part in self.get_fieldsets(request, obj) for name in part["fields"]]

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        fields: dict[str, Any] = {POLICY + f.name: _policy_form_field(f) for f in registry.known_policy_fields}
        if obj is None:
            fields["posture"] = forms.ChoiceField(
                choices=[("", "Choose one"), *Posture.choices],
                help_text="How strict its defaults are. It can't be changed later.",
            )
        fields |= {RETENTION + name: _retention_form_field(name) for name in services.ARTIFACT_TYPES}
        kwargs["help_texts"] = {
            name: f"{LIMIT_HELP[name]} From {low} to {high}." for name, (low, high) in services.LIMITS.items()
        }
        kwargs["form"] = type("EnvironmentForm", (_EnvironmentForm,), fields)
        return super().get_form(request, obj, change=change, **kwargs)

    @admin.display(description="approval policy")
    def policy_summary(self, row: Environment) -> SafeString:
        """The policy as an HTML list of its members."""
        pairs = [(f.label, shown(row.policy[f.name])) for f in registry.known_policy_fields if f.name in row.policy]
        return format_html('<ul class="plain">{}</ul>', format_html_join("", "<li>{}: <strong>{}</strong></li>", pairs))

    @admin.display(description="retention")
    def retention_summary(self, row: Environment) -> SafeString:
        """Retention of artifacts by type."""
        pairs = [(ARTIFACT_LABELS.get(name, name), days) for name, days in row.retention_days.items()]
        return format_html('<ul class="plain">{}</ul>', format_html_join("", "<li>{}: <strong>{}</strong></li>", pairs))

    def create(self, request: HttpRequest, data: Mapping[str, Any]) -> Environment:
        who = principal_of(request)
        require(who, Permission.MANAGE_PROJECT, scope_of(data["project"]))
        limits = {name: data[name] for name in services.LIMITS if data.get(name) is not None}
        given = {
            prefix: {k.removeprefix(prefix): v for k, v in data.items() if k.startswith(prefix) and v is not None}
            for prefix in (POLICY, RETENTION)
        }
        return services.create_environment(
            actor=who.ref,
            project=data["project"],
            name=data["name"],
            slug=data["slug"] or None,
            posture=data["posture"],
            policy=given[POLICY],
            retention_days=given[RETENTION],
            **limits,
        )

    def changes(self, obj: Any, form: Any) -> dict[str, Any]:
        changes = super().changes(obj, form)
        for name in services.LIMITS:
            if name in form.edited:
                changes[name] = form.cleaned_data[name]
        stored = form.stored_settings
        for prefix, setting in ((POLICY, "policy"), (RETENTION, "retention_days")):
            edited = {n.removeprefix(prefix): form.cleaned_data[n] for n in form.edited if n.startswith(prefix)}
            if edited:
                changes[setting] = {**stored[setting], **edited}
        return changes
