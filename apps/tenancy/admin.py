"""Organizations, projects and environments in the admin: every write goes through the services."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin
from django.http import HttpRequest

from apps.access.admin import NodeAdmin, pretty, principal_of
from apps.access.policy import can, require
from apps.access.roles import Permission
from apps.access.selectors import organizations_visible_to, projects_visible_to
from apps.tenancy import services
from apps.tenancy.models import Environment, Organization, Posture, Project
from apps.tenancy.scope import Scope
from apps.tenancy.selectors import scope_of

if TYPE_CHECKING:
    _ModelForm = forms.ModelForm[Any]
else:
    _ModelForm = forms.ModelForm


class _SlugOptional(_ModelForm):
    slug = forms.RegexField(r"\A[a-z0-9-]{1,63}\Z", required=False, help_text="Made from the name when left empty.")


def _take_over(obj: Any, made: Any) -> None:
    obj.__dict__.update(made.__dict__)


@admin.register(Organization)
class OrganizationAdmin(NodeAdmin):
    """Tenants."""

    form = _SlugOptional
    list_display = ("name", "slug", "created_at")
    fields = ("name", "slug", "created_at")
    permission = Permission.MANAGE_ORG_MEMBERSHIPS

    def has_add_permission(self, request: HttpRequest) -> bool:
        return self.admin_site.has_permission(request)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        if obj is None or self.has_change_permission(request, obj):
            return ["created_at"]
        return self.get_fields(request, obj)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Make or rename, by the service."""
        who, data = principal_of(request), form.cleaned_data
        if change:
            services.update_node(
                actor=who.ref, node=obj, name=data["name"], **({"slug": data["slug"]} if data["slug"] else {})
            )
        else:
            _take_over(obj, services.create_organization(actor=who.ref, name=data["name"], slug=data["slug"] or None))

    def delete_through(self, request: HttpRequest, row: Any, force: bool) -> None:
        services.delete_node(actor=principal_of(request).ref, scope=scope_of(row), force=force)


@admin.register(Project)
class ProjectAdmin(NodeAdmin):
    """Projects."""

    form = _SlugOptional
    list_display = ("name", "slug", "organization", "created_at")
    list_select_related = ("organization",)
    fields = ("organization", "name", "slug", "created_at")

    def has_add_permission(self, request: HttpRequest) -> bool:
        if not self.admin_site.has_permission(request):
            return False
        who = principal_of(request)
        return any(can(who, Permission.MANAGE_PROJECT, Scope(o)) for o in organizations_visible_to(who))

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        if obj is None:
            return ["created_at"]
        return (
            ["organization", "created_at"]
            if self.has_change_permission(request, obj)
            else self.get_fields(request, obj)
        )

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name == "organization":
            kwargs["queryset"] = organizations_visible_to(principal_of(request))
        return super().formfield_for_foreignkey(db_field, request, **kwargs)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Make or rename, by the service."""
        who, data = principal_of(request), form.cleaned_data
        if change:
            services.update_node(
                actor=who.ref, node=obj, name=data["name"], **({"slug": data["slug"]} if data["slug"] else {})
            )
            return
        require(who, Permission.MANAGE_PROJECT, Scope(data["organization"]))
        made = services.create_project(
            actor=who.ref, organization=data["organization"], name=data["name"], slug=data["slug"] or None
        )
        _take_over(obj, made)

    def delete_through(self, request: HttpRequest, row: Any, force: bool) -> None:
        services.delete_node(actor=principal_of(request).ref, scope=scope_of(row), force=force)


class _EnvironmentForm(_SlugOptional):
    posture = forms.ChoiceField(choices=Posture.choices, required=False)
    policy = forms.JSONField(required=False, help_text="Left out: the posture's default.")
    retention_days = forms.JSONField(required=False)


@admin.register(Environment)
class EnvironmentAdmin(NodeAdmin):
    """Environments with their policy and caps."""

    form = _EnvironmentForm
    list_display = ("name", "posture", "project", "created_at")
    list_filter = ("posture",)
    list_select_related = ("project__organization",)
    fields = (
        "project",
        "name",
        "slug",
        "posture",
        "policy",
        "max_in_flight_deployments",
        "retention_days",
        "created_at",
    )
    permission = Permission.MANAGE_ENVIRONMENT

    def has_add_permission(self, request: HttpRequest) -> bool:
        if not self.admin_site.has_permission(request):
            return False
        who = principal_of(request)
        return any(can(who, Permission.MANAGE_PROJECT, scope_of(p)) for p in projects_visible_to(who))

    @admin.display(description="policy")
    def policy_text(self, row: Environment) -> str:
        return pretty(row.policy)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        if obj is None:
            return ["created_at"]
        if self.has_change_permission(request, obj):
            return ["project", "posture", "created_at"]
        return self.get_fields(request, obj)

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name == "project":
            kwargs["queryset"] = projects_visible_to(principal_of(request))
        return super().formfield_for_foreignkey(db_field, request, **kwargs)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Make or change, by the service; the policy is judged there."""
        who, data = principal_of(request), form.cleaned_data
        settings: dict[str, Any] = {
            key: data[key] for key in ("policy", "retention_days", "max_in_flight_deployments") if data.get(key)
        }
        if change:
            slug = {"slug": data["slug"]} if data["slug"] else {}
            services.update_node(actor=who.ref, node=obj, name=data["name"], **slug, **settings)
            return
        require(who, Permission.MANAGE_PROJECT, scope_of(data["project"]))
        made = services.create_environment(
            actor=who.ref,
            project=data["project"],
            name=data["name"],
            slug=data["slug"] or None,
            posture=data["posture"] or Posture.DEV.value,
            **settings,
        )
        _take_over(obj, made)

    def delete_through(self, request: HttpRequest, row: Any, force: bool) -> None:
        services.delete_node(actor=principal_of(request).ref, scope=scope_of(row), force=force)
