"""Filters of the console's lists by project and environment, limited to what the user may see."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from apps.console.base.principal import principal_of
from apps.core.ids import parse_id
from apps.tenancy.models import Environment, Project

MOST_CHOICES = 50


class _NodeFilter(admin.SimpleListFilter):
    """Filter by the id of a project or environment."""

    lookup = ""

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        value = self.value()
        if not value:
            return queryset
        node_id = parse_id(value)
        return queryset.filter(**{self.lookup: node_id}) if node_id is not None else queryset.none()


class ProjectFilter(_NodeFilter):
    """Filter by project."""

    title = "project"
    parameter_name = "project"
    lookup = "environment__project"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        rows = Project.objects.visible_to(principal_of(request)).order_by("name", "pk")[:MOST_CHOICES]
        return [(str(row.pk), row.name) for row in rows]


class EnvironmentFilter(_NodeFilter):
    """Filter by environment; offers those of the selected project, else all."""

    title = "environment"
    parameter_name = "environment"
    lookup = "environment"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        rows = Environment.objects.visible_to(principal_of(request)).select_related("project")
        project_id = parse_id(request.GET.get("project", ""))
        if project_id is not None:
            rows = rows.filter(project=project_id)
        return [
            (str(row.pk), f"{row.project.name} / {row.name}")
            for row in rows.order_by("project__name", "name", "pk")[:MOST_CHOICES]
        ]


SCOPE_FILTERS = (ProjectFilter, EnvironmentFilter)
"""Filters for a list of rows with an environment."""
