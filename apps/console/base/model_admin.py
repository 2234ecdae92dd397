"""The base ModelAdmin: denies by default, limits rows by role, and writes through services only."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from django.contrib import admin, messages
from django.contrib.admin.utils import get_fields_from_path
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied, SuspiciousOperation
from django.db.models import JSONField, Model, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.safestring import SafeString
from django.utils.text import capfirst

from apps.access.policy import can
from apps.access.principals import Principal
from apps.access.roles import Permission
from apps.audit import services as audit
from apps.console.base.forms import DeletionForm, PathChoiceField, RevisedForm, ServiceForm, path_of
from apps.console.base.principal import principal_of
from apps.console.base.ui import REFUSED, UNCHANGED, add_error_message, format_json
from apps.core.errors import ServiceError, Unprocessable
from apps.tenancy.scope import Scope
from apps.tenancy.selectors import scope_of

MOST_EVENTS = 200


MOST_LOOKUP_CHARACTERS = 2000


MOST_SEARCH_CHARACTERS = 200


MOST_SEARCH_WORDS = 10


class DisallowedSearch(SuspiciousOperation):
    """Raised for a search term that is too long."""


if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Any]
else:
    _ModelAdmin = admin.ModelAdmin


class PreparedChangeList(ChangeList):
    """A list page that loads related data for all of its rows together (`ScopedModelAdmin.prepare_rows`)."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        rows = list(self.result_list)
        if isinstance(self.model_admin, ScopedModelAdmin):
            self.model_admin.prepare_rows(rows)
        self.result_list = rows


class ScopedModelAdmin(_ModelAdmin):
    """A ModelAdmin that is read-only by default and limited to the rows that the user may see.

    The limit holds for lists, history and deletion. An invisible row is the same 404 as a missing one. Views of
    tenants' rows by platform staff are audited.
    """

    actions = None
    list_per_page = 50
    show_facets = admin.ShowFacets.NEVER
    show_full_result_count = False
    view_on_site = False
    list_select_related: ClassVar[tuple[str, ...]] = ("environment__project__organization",)
    """Foreign keys that are loaded with each row, in the list and on its page."""
    form = ServiceForm
    stored_fields: ClassVar[tuple[str, ...]] = ()
    """Fields that are shown of a stored row only, after `fields`, and never changed."""
    fixed_fields: ClassVar[tuple[str, ...]] = ()
    """Those of `fields` that are given when a row is added, and not changed later."""
    audit_kind = ""
    """Prefix of audit targets of this model (`agent` in `agent:<id>`); empty for the model's name."""

    def visible(self, rows: QuerySet[Any], principal: Principal) -> QuerySet[Any]:
        """Those of `rows`, a `ScopedQuerySet`, that `principal` may see."""
        return rows.visible_to(principal)  # type: ignore[attr-defined,no-any-return]

    def scope_for_row(self, row: Any) -> Scope:
        """The scope of a row."""
        return scope_of(row.environment)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows = self.visible(super().get_queryset(request), principal_of(request))
        return rows.select_related(*self.list_select_related) if self.list_select_related else rows

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        """Return the row if the user may see it, else None. While a page is shown, it is read once."""
        if request.method != "GET":
            return super().get_object(request, object_id, from_field)
        known: dict[Any, Any] = request.__dict__.setdefault("_rows_of_page", {})
        key = (self.model, str(object_id), from_field)
        if key not in known:
            known[key] = super().get_object(request, object_id, from_field)
        return known[key]

    def lookup_allowed(self, lookup: str, value: Any, request: HttpRequest | None = None) -> bool:
        """Allow only the fields of `list_filter`, with `exact`, `in` or `isnull`.

        Django allows any lookup on a model's own fields: `regex`, which can be very slow, and comparisons with columns that
        no page shows.
        """
        if len(str(value)) > MOST_LOOKUP_CHARACTERS:
            return False
        filters = self.get_list_filter(request) if request is not None else self.list_filter or ()
        return any(lookup in self._lookups_of(each) for each in filters)

    def _lookups_of(self, each: Any) -> set[str]:
        """The query parameters of one entry of `list_filter`."""
        if isinstance(each, type) and issubclass(each, admin.SimpleListFilter):
            return {str(each.parameter_name)}
        name = each[0] if isinstance(each, list | tuple) else str(each)
        names = [name]
        field: Any = get_fields_from_path(self.model, name)[-1]
        if field.is_relation:
            names.append(f"{name}__{field.target_field.name}")
        return {lookup for n in names for lookup in (n, f"{n}__exact", f"{n}__in", f"{n}__isnull")}

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> tuple[Any, bool]:
        """Search as Django does, with a term of bounded length."""
        if len(search_term) > MOST_SEARCH_CHARACTERS or len(search_term.split()) > MOST_SEARCH_WORDS:
            raise DisallowedSearch(
                f"A search has at most {MOST_SEARCH_CHARACTERS} characters and {MOST_SEARCH_WORDS} words."
            )
        return super().get_search_results(request, queryset, search_term)

    # --- lists ---

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return PreparedChangeList

    def prepare_rows(self, rows: list[Any]) -> None:
        """Load the data that the columns need for all rows of a page, in a few queries."""

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        """Show the list. A view by platform staff, which spans tenants, is audited in the system's chain."""
        who = principal_of(request)
        if who.is_superuser:
            audit.record_view(organization_id=None, actor=who.ref, target=f"{self.model._meta.model_name}:list")
        title = str(capfirst(self.model._meta.verbose_name_plural))
        return super().changelist_view(request, {"title": title, **(extra_context or {})})

    @admin.display(description="environment", ordering="environment")
    def where(self, row: Any) -> str:
        """The row's environment with its project."""
        environment = row.environment
        return path_of(environment) if environment is not None else "–"

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.admin_site.has_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.admin_site.has_permission(request)

    def may_add(self, who: Principal) -> bool:
        """Whether `who` may add a row somewhere."""
        return False

    def has_add_permission(self, request: HttpRequest) -> bool:
        return self.admin_site.has_permission(request) and self.may_add(principal_of(request))

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def allows(self, request: HttpRequest, permission: Permission, scope: Scope) -> bool:
        """True if the user has `permission` at `scope` by role."""
        return bool(can(principal_of(request), permission, scope))

    def get_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        if self.fields:
            stored = self.stored_fields if obj is not None else ()
            revised = (
                issubclass(self.form, RevisedForm) and obj is not None and self.has_change_permission(request, obj)
            )
            return [*self.fields, *stored, *(["expected_rev"] if revised else [])]
        hidden = set(self.exclude or ())
        names = []
        for field in self.model._meta.concrete_fields:
            if field.name not in hidden:
                shown = f"{field.name}_shown" if isinstance(field, JSONField) else field.name
                names.append("where" if shown == "environment" else shown)
        return names

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        if obj is None and self.has_add_permission(request):
            return list(self.readonly_fields)
        if self.has_change_permission(request, obj):
            return [*self.fixed_fields, *self.stored_fields]
        return self.get_fields(request, obj)

    def __getattr__(self, name: str) -> Any:
        # `<field>_shown` is a JSON field formatted for display
        if name.endswith("_shown") and not name.startswith("_"):
            field = name.removesuffix("_shown")

            def shown(row: Model) -> SafeString:
                return format_json(getattr(row, field))

            shown.short_description = field.replace("_", " ")  # type: ignore[attr-defined]
            return shown
        raise AttributeError(name)

    def _get_obj_does_not_exist_redirect(self, request: HttpRequest, opts: Any, object_id: Any) -> HttpResponse:
        raise Http404

    def object_or_404(self, request: HttpRequest, object_id: str) -> Any:
        """Return the row if the user may see it, else raise Http404. A view by platform staff is audited."""
        row = self.get_object(request, object_id)
        if row is None:
            self._record_denial(request, "view")
            raise Http404
        self._note_staff_view(request, row)
        return row

    def _scope_if_any(self, row: Any) -> Scope | None:
        """The scope of a row; None for a row that belongs to no organization."""
        try:
            return self.scope_for_row(row)
        except (AttributeError, TypeError):
            return None

    def _record_denial(self, request: HttpRequest, verb: str, row: Any = None) -> None:
        """Record that the user may not `verb` a row that they see, or any row of this model."""
        scope = None if row is None else self._scope_if_any(row)
        audit.record_denial(
            organization_id=None if scope is None else scope.organization_id,
            action=f"console.{verb}",
            actor=principal_of(request).ref,
            target=f"{self.model._meta.model_name}:any" if row is None else self.audit_target(row),
            reason="not given by a role",
            scope={} if scope is None else scope.as_dict(),
        )

    def _note_staff_view(self, request: HttpRequest, row: Any) -> None:
        who = principal_of(request)
        if not who.is_superuser or request.method != "GET":
            return
        scope = self._scope_if_any(row)
        if scope is not None and not can(who, Permission.VIEW_ORG_SUMMARY, Scope(scope.organization)):
            audit.record_view(
                organization_id=scope.organization_id,
                actor=who.ref,
                target=self.audit_target(row),
                scope=scope.as_dict(),
            )

    # --- forms: a service's errors are shown in the form, with the submitted values ---

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        form = super().get_form(request, obj, change=change, **kwargs)
        return type(form.__name__, (form,), {"refused": getattr(request, REFUSED, None)})

    def changeform_view(
        self, request: HttpRequest, object_id: str | None = None, form_url: str = "", extra_context: Any = None
    ) -> Any:
        context = dict(extra_context or {})
        row = None if object_id is None else self.object_or_404(request, object_id)
        if row is not None:
            noun = str(capfirst(self.model._meta.verbose_name))
            context = {
                "title": str(row),
                "subtitle": None,
                "tab_title": self._tab_title(row, noun),
                "history_shown": self.can_read_history(request, row),
                **context,
            }
        try:
            return super().changeform_view(request, object_id, form_url, context)
        except PermissionDenied:
            self._record_denial(request, "add" if row is None else "change", row)
            raise
        except ServiceError as error:
            refused = error
        # nothing was written: show the form again with the service's errors
        setattr(request, REFUSED, refused)
        response = super().changeform_view(request, object_id, form_url, context)
        response.status_code = refused.status
        for name, value in refused.headers.items():
            response[name] = value
        return response

    def _tab_title(self, row: Any, noun: str) -> str:
        scope = self._scope_if_any(row)
        place = path_of(scope.node) if scope is not None else ""
        return " · ".join(text for text in (str(row), place, noun, "ByteOr Cloud") if text)

    def response_change(self, request: HttpRequest, obj: Any) -> HttpResponse:
        if getattr(request, UNCHANGED, False):
            messages.info(request, "No changes to save.")
            return self.response_post_save_change(request, obj)
        return super().response_change(request, obj)

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        # projects and environments are labelled with their path
        if db_field.name in ("project", "environment"):
            kwargs.setdefault("form_class", PathChoiceField)
        return super().formfield_for_foreignkey(db_field, request, **kwargs)

    # --- history: the audit events of a row ---

    def audit_target(self, row: Any) -> str:
        """The audit target of `row`."""
        return f"{self.audit_kind or self.model._meta.model_name}:{row.pk}"

    def can_read_history(self, request: HttpRequest, row: Any) -> bool:
        """True if the user may read the audit events of `row`: an admin of its organization, or platform staff."""
        who = principal_of(request)
        if who.is_superuser:
            return True
        scope = self._scope_if_any(row)
        return scope is not None and bool(can(who, Permission.MANAGE_ORG_MEMBERSHIPS, Scope(scope.organization)))

    def history_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        """Show the audit events of a row, newest first."""
        row = self.object_or_404(request, object_id)
        if not self.can_read_history(request, row):
            self._record_denial(request, "history", row)
            raise PermissionDenied
        scope = self._scope_if_any(row)
        organization_id = scope.organization_id if scope is not None else None
        events = list(audit.events_about(self.audit_target(row), organization_id, most=MOST_EVENTS + 1))
        context = {
            **self.admin_site.each_context(request),
            "title": f"History of {row}",
            "opts": self.model._meta,
            "object": row,
            "events": events[:MOST_EVENTS],
            "more": len(events) > MOST_EVENTS,
        }
        return TemplateResponse(request, "admin/object_history.html", context)

    def changelist_url(self) -> str:
        """URL of this model's list."""
        opts = self.model._meta
        return reverse(f"admin:{opts.app_label}_{opts.model_name}_changelist")

    # --- deleting: one page, through the service ---

    def delete_through(self, request: HttpRequest, row: Any, force: bool) -> None:
        """Delete `row` by its app's service. A subclass that allows deletion overrides this."""
        raise NotImplementedError

    def deletion_consequences(self, row: Any) -> list[str]:
        """Sentences that describe the consequences of deleting `row`."""
        return []

    def deletion_counts(self, row: Any) -> list[str]:
        """Descriptions of what is deleted with `row`, with counts."""
        return []

    def deletion_blockers(self, row: Any) -> list[str]:
        """Descriptions of what is in flight below `row`; a deletion must then be forced."""
        return []

    def deletion_slug(self, row: Any) -> str | None:
        """The slug to type to delete `row`; None if not required."""
        return None

    def delete_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> Any:
        row = self.object_or_404(request, object_id)
        if not self.has_delete_permission(request, row):
            self._record_denial(request, "delete", row)
            raise PermissionDenied
        # an empty form that is sent does not confirm a deletion that requires the slug
        form = DeletionForm(request.POST if request.method == "POST" else None, slug=self.deletion_slug(row))
        status, refusal, headers = 200, "", {}
        if form.is_bound:
            if not form.is_valid():
                status = Unprocessable.status
            else:
                name = str(row)
                try:
                    self.delete_through(request, row, bool(form.cleaned_data["force"]))
                except ServiceError as error:
                    status, refusal, headers = error.status, error.detail, dict(error.headers)
                else:
                    messages.success(request, f"{name} is deleted.")
                    return HttpResponseRedirect(self.changelist_url())
        noun = str(self.model._meta.verbose_name)
        context = {
            **self.admin_site.each_context(request),
            "title": f"Delete {noun} {row}",
            "object": row,
            "noun": noun,
            "opts": self.model._meta,
            "form": form,
            "refusal": refusal,
            "words": self.deletion_consequences(row),
            "counts": self.deletion_counts(row),
            "blockers": self.deletion_blockers(row),
            "list_url": self.changelist_url(),
            "back": reverse(f"admin:{self.model._meta.app_label}_{self.model._meta.model_name}_change", args=[row.pk]),
        }
        return TemplateResponse(request, "admin/delete_through.html", context, status=status, headers=headers)

    def run(self, request: HttpRequest, write: Callable[[], Any], done: str) -> None:
        """Run a write and show its result as a message."""
        try:
            write()
        except ServiceError as error:
            add_error_message(request, error)
        else:
            messages.success(request, done)
