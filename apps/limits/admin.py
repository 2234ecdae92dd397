"""Admin page of the limits of an organization: platform staff set them, its admins see them."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from apps.api.permissions import Permission, Principal, may_on_some_organization
from apps.console.base.forms import RevisedForm
from apps.console.base.model_admin import ScopedModelAdmin
from apps.console.base.principal import principal_of
from apps.console.base.ui import UNCHANGED
from apps.limits import services
from apps.limits.models import RANGES, USUAL, RateOverride
from apps.tenancy.models import Organization
from apps.tenancy.scope import Scope

MEANING = {
    "person_calls": "A minute, for the browser sessions of a person together and for each personal token. A person in several "
    "organizations has the highest number of them.",
    "agent_calls": "A minute, for each agent.",
}


class _OverrideForm(RevisedForm):
    """Form with a number for each limit; an empty field is the usual limit."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, (low, high) in RANGES.items():
            if name in self.fields:
                self.fields[name].help_text = f"{MEANING[name]} From {low} to {high}; {USUAL[name]} if empty."


@admin.register(RateOverride)
class RateOverrideAdmin(ScopedModelAdmin):
    """Organizations whose limits are not the usual ones."""

    form = _OverrideForm
    list_display = ("organization", *RANGES, "updated_at")
    fields = ("organization", *RANGES)
    fixed_fields = ("organization",)
    list_select_related = ("organization",)
    search_fields = ("organization__name", "organization__slug")
    audit_kind = "rate_override"

    def scope_for_row(self, row: Any) -> Scope:
        return Scope(row.organization)

    def _is_staff(self, request: HttpRequest) -> bool:
        return self.admin_site.has_permission(request) and principal_of(request).is_superuser

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self._is_staff(request) or (
            self.admin_site.has_permission(request)
            and may_on_some_organization(principal_of(request), Permission.MANAGE_ORG_MEMBERSHIPS)
        )

    def may_add(self, who: Principal) -> bool:
        return who.is_superuser

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._is_staff(request)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return obj is not None and self._is_staff(request)

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name == "organization":
            kwargs["queryset"] = Organization.objects.alive().filter(rate_override__isnull=True).order_by("name", "pk")
        return super().formfield_for_foreignkey(db_field, request, **kwargs)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Set the limits through the service."""
        if change and not form.edited:
            setattr(request, UNCHANGED, True)
            return
        stored = services.set_rate_override(
            actor=principal_of(request).ref,
            organization=obj.organization,
            expected_rev=form.rev_to_expect() if change else None,
            **{name: form.cleaned_data[name] for name in RANGES},
        )
        obj.pk = stored.pk

    def delete_through(self, request: HttpRequest, row: Any, force: bool) -> None:
        services.delete_rate_override(actor=principal_of(request).ref, organization=row.organization)

    def deletion_consequences(self, row: Any) -> list[str]:
        usual = ", ".join(f"{USUAL[name]} {self.model._meta.get_field(name).verbose_name}" for name in RANGES)
        return [f"The usual limits a minute hold for {row.organization} again: {usual}."]
