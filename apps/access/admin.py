"""Admin pages of people, tokens and members. Access is denied by default, and every write calls a service."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.urls import reverse

from apps.access.models import Membership, MemberStatus, PersonalToken, User
from apps.access.policy import require
from apps.access.principals import Principal
from apps.access.roles import Permission
from apps.access.selectors import (
    may_on_some_organization,
    may_on_some_project,
    organizations_where,
    projects_where,
)
from apps.access.services import change_account_state, change_role, invite, remove_member
from apps.console.base.forms import RevisedForm, ServiceForm
from apps.console.base.model_admin import ScopedModelAdmin
from apps.console.base.principal import principal_of
from apps.console.base.ui import UNCHANGED, status_badge
from apps.tenancy.models import Organization
from apps.tenancy.scope import Scope


class PersonForm(ServiceForm):
    """The fields of an account that platform staff can change."""

    address_proved = forms.BooleanField(
        required=False,
        help_text="Ticking it confirms that the account belongs to the reader of mail at its address. Password, sessions and tokens "
        "of the account end, and its memberships become invitations again. It can't be undone.",
    )

    class Meta:
        model = User
        fields = ("is_active",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.instance.address_proved_at is not None:
            self.fields["address_proved"].initial = True
            self.fields["address_proved"].disabled = True


@admin.register(User)
class PersonAdmin(ScopedModelAdmin):
    """People, for platform staff."""

    list_display = ("email", "name", "is_active", "is_superuser", "last_login")
    search_fields = ("email", "name")
    fields = ("email", "name", "is_active", "is_superuser", "address_proved", "last_login", "created_at")
    fixed_fields = ("email", "name", "is_superuser", "last_login", "created_at")
    form = PersonForm
    list_filter = ("is_active", "is_superuser")
    list_select_related = ()
    audit_kind = "person"

    def visible(self, rows: QuerySet[Any], principal: Principal) -> QuerySet[Any]:
        return rows if principal.is_superuser else rows.none()

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.admin_site.has_permission(request) and principal_of(request).is_superuser

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.has_module_permission(request)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Change activation and the confirmation of the address, through the services."""
        change_account_state(
            actor=principal_of(request),
            user_id=obj.pk,
            active=bool(form.cleaned_data["is_active"]),
            address_proved=bool(form.cleaned_data["address_proved"]),
        )


@admin.register(PersonalToken)
class PersonalTokenAdmin(ScopedModelAdmin):
    """The user's own personal tokens, without their text."""

    list_display = ("name", "public_id", "expires_at", "last_used_at", "revoked_at")
    fields = ("name", "public_id", "created_at", "expires_at", "last_used_at", "revoked_at")
    list_select_related = ()
    audit_kind = "token"

    def visible(self, rows: QuerySet[Any], principal: Principal) -> QuerySet[Any]:
        return rows.filter(user_id=principal.id)


class _MemberForm(RevisedForm):
    """Form to invite a person or to change a role."""

    may_invite_to: frozenset[Any] = frozenset()
    """The organizations whose members the user may manage."""

    def clean(self) -> dict[str, Any] | None:
        data = super().clean() or {}
        organization, project = data.get("organization"), data.get("project")
        if not self.instance._state.adding or organization is None:
            return data
        if project is None and organization.pk not in self.may_invite_to:
            self.add_error(
                "project", "Choose a project: you can invite into your projects, not into the whole organization."
            )
        elif project is not None and project.organization_id != organization.pk:
            self.add_error("project", f"This project does not belong to {organization.name}.")
        return data


@admin.register(Membership)
class MembershipAdmin(ScopedModelAdmin):
    """Members of organizations and projects."""

    form = _MemberForm
    fields = ("organization", "project", "email", "role")
    fixed_fields = ("organization", "project", "email")
    stored_fields = ("status",)
    list_display = ("email", "person", "role", "status_as_badge", "organization", "project")
    list_filter = ("role", "status")
    search_fields = ("email", "user__name")
    list_select_related = ("organization", "project", "user")
    audit_kind = "member"

    @admin.display(description="name", ordering="user__name")
    def person(self, row: Membership) -> str:
        """The name of the user, after they accepted."""
        return row.user.name if row.user is not None else "–"

    @admin.display(description="status", ordering="status")
    def status_as_badge(self, row: Membership) -> str:
        """The status as a badge."""
        return status_badge(str(row.status))

    def scope_for_row(self, row: Any) -> Scope:
        return Scope(row.organization, row.project)

    def _manages(self, request: HttpRequest, row: Any) -> bool:
        scope = self.scope_for_row(row)
        needed = Permission.MANAGE_PROJECT if scope.project else Permission.MANAGE_ORG_MEMBERSHIPS
        return self.allows(request, needed, scope)

    def may_add(self, who: Principal) -> bool:
        return may_on_some_organization(who, Permission.MANAGE_ORG_MEMBERSHIPS) or may_on_some_project(
            who, Permission.MANAGE_PROJECT
        )

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return obj is not None and self._manages(request, obj)

    has_delete_permission = has_change_permission

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        form = super().get_form(request, obj, change=change, **kwargs)
        if obj is None:
            managed = organizations_where(principal_of(request), Permission.MANAGE_ORG_MEMBERSHIPS)
            form.may_invite_to = frozenset(managed.values_list("pk", flat=True))
        return form

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        who = principal_of(request)
        whole = organizations_where(who, Permission.MANAGE_ORG_MEMBERSHIPS)
        projects = projects_where(who, Permission.MANAGE_PROJECT)
        if db_field.name == "organization":
            kwargs["queryset"] = Organization.objects.alive().filter(
                Q(pk__in=whole.values("pk")) | Q(pk__in=projects.values("organization_id"))
            )
        elif db_field.name == "project":
            everywhere = whole.exists()
            kwargs["queryset"] = projects.select_related("organization").order_by("organization__name", "name")
            kwargs["required"] = not everywhere
            kwargs["empty_label"] = "the whole organization" if everywhere else None
        return super().formfield_for_foreignkey(db_field, request, **kwargs)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Invite or change a role through the services, after checking the user's permission."""
        who, scope = principal_of(request), Scope(obj.organization, obj.project)
        needed = Permission.MANAGE_PROJECT if scope.project else Permission.MANAGE_ORG_MEMBERSHIPS
        require(who, needed, scope)
        if change:
            if not form.edited:
                setattr(request, UNCHANGED, True)
                return
            change_role(
                actor=who,
                scope=scope,
                member_id=obj.pk,
                role=form.cleaned_data["role"],
                expected_rev=form.rev_to_expect(),
            )
            return
        made = invite(actor=who, scope=scope, email=form.cleaned_data["email"], role=form.cleaned_data["role"])
        obj.pk = made.membership.pk
        path = reverse("auth-invitation", args=[made.token.reveal()])
        messages.warning(request, f"The invitation link, shown once: {request.build_absolute_uri(path)}")

    def delete_through(self, request: HttpRequest, row: Any, force: bool) -> None:
        remove_member(actor=principal_of(request), scope=self.scope_for_row(row), member_id=row.pk)

    def deletion_consequences(self, row: Any) -> list[str]:
        where = f"the project {row.project.name}" if row.project is not None else row.organization.name
        if row.status == MemberStatus.INVITED:
            return [f"The invitation of {row.email} to {where} is cancelled: its link stops working."]
        return [
            f"{row.email} loses the role {row.get_role_display()} in {where}, at once.",
            "Their account, their other roles and the audit events of their actions are kept.",
            "Their votes on pending approvals do not count any more.",
        ]
