"""The base of every screen in the admin: denies by default, shows what the roles give, writes through services only."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.db.models import JSONField, Model, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from apps.access.authentication import principal_of
from apps.access.models import Membership, PersonalToken, User
from apps.access.policy import can, require
from apps.access.principals import Principal
from apps.access.roles import Permission
from apps.access.selectors import (
    environments_visible_to,
    organizations_visible_to,
    projects_visible_to,
)
from apps.access.services import change_account_state, change_role, invite, remove_member
from apps.audit import services as audit
from apps.core.errors import NotFound, ServiceError
from apps.tenancy.models import Environment, Organization, Project
from apps.tenancy.scope import Scope
from apps.tenancy.selectors import scope_of

__all__ = ["NodeAdmin", "ScopedModelAdmin", "pill", "pretty", "principal_of", "tell"]


def tell(request: HttpRequest, error: ServiceError) -> None:
    """Show a refused write on the next page: the sentence, each field's problem, and the code."""
    parts = [error.detail, *(f"{e.pointer}: {e.detail}" for e in error.errors)]
    if blockers := error.extra.get("blockers"):
        parts += [str(b) for b in blockers] if isinstance(blockers, list) else []
    messages.error(request, " ".join(parts), extra_tags=f"code-{error.code}")


def pretty(value: object) -> SafeString:
    """JSON laid out for reading."""
    return format_html('<pre class="json">{}</pre>', json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True))


def pill(text: str) -> SafeString:
    """A status as a coloured pill."""
    return format_html('<span class="pill pill-{}">{}</span>', text.replace("_", "-"), text.replace("_", " "))


if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Any]
else:
    _ModelAdmin = admin.ModelAdmin


class ScopedModelAdmin(_ModelAdmin):
    """Read-only unless a subclass says otherwise; rows, autocomplete, history and delete preview show only what the person may see.

    What they may not see is the same 404 as what never was. Platform staff's looks into tenants are put on record.
    """

    actions = None
    list_per_page = 50
    show_full_result_count = False
    environment_path = "environment"
    view_on_site = False

    def visible(self, rows: QuerySet[Any], principal: Principal) -> QuerySet[Any]:
        """The rows of this model that `principal` may see."""
        return rows.filter(**{f"{self.environment_path}__in": environments_visible_to(principal).values("pk")})

    def place_of(self, row: Any) -> Scope:
        """Where in the tree a row hangs."""
        node: Any = row
        for name in self.environment_path.split("__"):
            node = getattr(node, name)
        return scope_of(node)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return self.visible(super().get_queryset(request), principal_of(request))

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.admin_site.has_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.admin_site.has_permission(request)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def allows(self, request: HttpRequest, permission: Permission, scope: Scope) -> bool:
        """Whether the person has `permission` at `scope`, by role."""
        return bool(can(principal_of(request), permission, scope))

    def get_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        if self.fields:
            return list(self.fields)
        hidden = set(self.exclude or ())
        names = []
        for field in self.model._meta.concrete_fields:
            if field.name not in hidden:
                names.append(f"{field.name}_shown" if isinstance(field, JSONField) else field.name)
        return names

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        if self.has_change_permission(request, obj) or (obj is None and self.has_add_permission(request)):
            return list(super().get_readonly_fields(request, obj))
        return self.get_fields(request, obj)

    def __getattr__(self, name: str) -> Any:
        # `<field>_shown` is a JSON field laid out for reading
        if name.endswith("_shown") and not name.startswith("_"):
            field = name.removesuffix("_shown")

            def shown(row: Model) -> SafeString:
                return pretty(getattr(row, field))

            shown.short_description = field.replace("_", " ")  # type: ignore[attr-defined]
            return shown
        raise AttributeError(name)

    def _get_obj_does_not_exist_redirect(self, request: HttpRequest, opts: Any, object_id: Any) -> HttpResponse:
        raise Http404

    def object_or_404(self, request: HttpRequest, object_id: str) -> Any:
        """The row if the person may see it; a look by platform staff into a tenant is put on record."""
        row = self.get_object(request, object_id)
        if row is None:
            raise Http404
        self._note_staff_view(request, row)
        return row

    def _note_staff_view(self, request: HttpRequest, row: Any) -> None:
        who = principal_of(request)
        if not who.is_superuser or request.method != "GET":
            return
        try:
            scope = self.place_of(row)
        except (AttributeError, TypeError):
            return
        if not can(who, Permission.GLANCE_ORG, Scope(scope.organization)):
            audit.record(
                organization_id=scope.organization_id,
                action="staff.viewed",
                actor=who.ref,
                target=f"{self.model._meta.model_name}:{row.pk}",
                scope=scope.as_dict(),
            )

    def changeform_view(
        self, request: HttpRequest, object_id: str | None = None, form_url: str = "", extra_context: Any = None
    ) -> Any:
        if object_id is not None:
            self.object_or_404(request, object_id)
        try:
            return super().changeform_view(request, object_id, form_url, extra_context)
        except ServiceError as error:
            tell(request, error)
            return HttpResponseRedirect(request.path)

    def changelist_url(self) -> str:
        """Where this model is listed."""
        opts = self.model._meta
        return reverse(f"admin:{opts.app_label}_{opts.model_name}_changelist")

    # --- deleting: one page, through the service ---

    def delete_through(self, request: HttpRequest, row: Any, force: bool) -> None:
        """Delete `row` by its room's service. A subclass that allows deleting says how."""
        raise NotImplementedError

    def delete_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> Any:
        row = self.object_or_404(request, object_id)
        if not self.has_delete_permission(request, row):
            return TemplateResponse(
                request,
                "error.html",
                {
                    **self.admin_site.each_context(request),
                    "title": "Forbidden",
                    "detail": "Your role does not allow this.",
                },
                status=403,
            )
        status = 200
        if request.method == "POST":
            try:
                self.delete_through(request, row, request.POST.get("force") == "true")
            except ServiceError as error:
                tell(request, error)
                status = error.status
            else:
                messages.success(request, f"{row} is deleted.")
                return HttpResponseRedirect(self.changelist_url())
        context = {
            **self.admin_site.each_context(request),
            "title": f"Delete {row}",
            "object": row,
            "opts": self.model._meta,
            "back": self.changelist_url(),
        }
        return TemplateResponse(request, "admin/delete_through.html", context, status=status)

    def run(self, request: HttpRequest, write: Callable[[], Any], done: str) -> None:
        """Do one write and say how it went."""
        try:
            write()
        except ServiceError as error:
            tell(request, error)
        else:
            messages.success(request, done)


@admin.register(User)
class PersonAdmin(ScopedModelAdmin):
    """People, for platform staff."""

    list_display = ("email", "name", "is_active", "is_superuser", "last_login")
    search_fields = ("email", "name")
    fields = ("email", "name", "is_active", "is_superuser", "last_login", "created_at")

    def visible(self, rows: QuerySet[Any], principal: Principal) -> QuerySet[Any]:
        return rows if principal.is_superuser else rows.none()

    def has_module_permission(self, request: HttpRequest) -> bool:
        return principal_of(request).is_superuser if self.admin_site.has_permission(request) else False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.has_module_permission(request)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        return ["email", "name", "is_superuser", "last_login", "created_at"]

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Only activation is changed here, and by the service."""
        change_account_state(actor=principal_of(request), user_id=obj.pk, active=bool(form.cleaned_data["is_active"]))


@admin.register(PersonalToken)
class PersonalTokenAdmin(ScopedModelAdmin):
    """My own personal tokens; never their text."""

    list_display = ("name", "public_id", "expires_at", "last_used_at", "revoked_at")
    fields = ("name", "public_id", "created_at", "expires_at", "last_used_at", "revoked_at")

    def visible(self, rows: QuerySet[Any], principal: Principal) -> QuerySet[Any]:
        return rows.filter(user_id=principal.id)


@admin.register(Membership)
class MembershipAdmin(ScopedModelAdmin):
    """Members of organizations and projects."""

    list_display = ("email", "role", "status", "organization", "project")
    list_filter = ("role", "status")
    search_fields = ("email",)
    list_select_related = ("organization", "project")
    fields = ("organization", "project", "email", "role", "status")

    def visible(self, rows: QuerySet[Any], principal: Principal) -> QuerySet[Any]:
        from django.db.models import Q

        from apps.access.selectors import active_memberships

        if principal.is_superuser:
            return rows.filter(organization__deleted_at__isnull=True)
        assert principal.id is not None
        whole = active_memberships(principal.id).filter(project__isnull=True).values("organization_id")
        mine = projects_visible_to(principal).values("pk")
        return rows.filter(Q(project__isnull=True, organization__in=whole) | Q(project__in=mine))

    def place_of(self, row: Any) -> Scope:
        return Scope(row.organization, row.project)

    def _manages(self, request: HttpRequest, row: Any) -> bool:
        scope = self.place_of(row)
        needed = Permission.MANAGE_PROJECT if scope.project else Permission.MANAGE_ORG_MEMBERSHIPS
        return self.allows(request, needed, scope)

    def has_add_permission(self, request: HttpRequest) -> bool:
        if not self.admin_site.has_permission(request):
            return False
        who = principal_of(request)
        return any(can(who, Permission.MANAGE_ORG_MEMBERSHIPS, Scope(o)) for o in organizations_visible_to(who)) or any(
            can(who, Permission.MANAGE_PROJECT, scope_of(p)) for p in projects_visible_to(who)
        )

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return obj is not None and self._manages(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return obj is not None and self._manages(request, obj)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        if obj is None:
            return ["status"]
        if self.has_change_permission(request, obj):
            return ["organization", "project", "email", "status"]
        return self.get_fields(request, obj)

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        who = principal_of(request)
        if db_field.name == "organization":
            kwargs["queryset"] = organizations_visible_to(who)
        elif db_field.name == "project":
            kwargs["queryset"], kwargs["required"] = projects_visible_to(who), False
        return super().formfield_for_foreignkey(db_field, request, **kwargs)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Inviting or changing a role, by the services, after asking whether they may."""
        who, scope = principal_of(request), Scope(obj.organization, obj.project)
        if obj.project is not None and obj.project.organization_id != obj.organization_id:
            raise NotFound("The project is not of that organization.")
        needed = Permission.MANAGE_PROJECT if scope.project else Permission.MANAGE_ORG_MEMBERSHIPS
        require(who, needed, scope)
        if change:
            change_role(actor=who, scope=scope, member_id=obj.pk, role=form.cleaned_data["role"])
            return
        made = invite(actor=who, scope=scope, email=form.cleaned_data["email"], role=form.cleaned_data["role"])
        obj.pk = made.membership.pk
        path = reverse("auth-invitation", args=[made.token.reveal()])
        messages.warning(request, f"The invitation link, shown once: {request.build_absolute_uri(path)}")

    def delete_through(self, request: HttpRequest, row: Any, force: bool) -> None:
        remove_member(actor=principal_of(request), scope=self.place_of(row), member_id=row.pk)


class NodeAdmin(ScopedModelAdmin):
    """What organizations, projects and environments have in common on screen. Registered by tenancy's admin."""

    search_fields = ("name", "slug")
    permission = Permission.MANAGE_PROJECT

    def visible(self, rows: QuerySet[Any], principal: Principal) -> QuerySet[Any]:
        seen: dict[type[Model], QuerySet[Any]] = {
            Organization: organizations_visible_to(principal),
            Project: projects_visible_to(principal),
            Environment: environments_visible_to(principal),
        }
        return rows.filter(pk__in=seen[self.model].values("pk"))

    def place_of(self, row: Any) -> Scope:
        return scope_of(row)

    def may_manage(self, request: HttpRequest, row: Any) -> bool:
        """By role; platform staff manage organizations."""
        who = principal_of(request)
        if who.is_superuser and isinstance(row, Organization):
            return True
        return bool(can(who, self.permission, scope_of(row)))

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return obj is not None and self.may_manage(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return obj is not None and self.may_manage(request, obj)
