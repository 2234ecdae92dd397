"""Admin of drafts, with diagnostics next to their lines, and of versions, with their text and graph."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe

from apps.console.base.filters import SCOPE_FILTERS
from apps.console.base.model_admin import ScopedModelAdmin
from apps.console.base.ui import status_badge
from apps.pipelines.models import PipelineDraft, PipelineVersion
from apps.runtime.spec import Plan, compile_spec, to_svg


def graph_of(text: str) -> SafeString:
    """The spec's graph as SVG, in a scrollable frame; empty while the spec does not compile."""
    plan = compile_spec(text).plan
    return graph_of_plan(plan) if plan is not None else SafeString("")


MOST_DRAWN = 40
"""A graph with more nodes than this is not drawn."""


def graph_of_plan(plan: Plan) -> SafeString:
    """The plan's graph as SVG, as wide as the page; a sentence with its size when it has too many nodes to draw."""
    nodes = len(plan.stages) if not plan.roles else len(plan.roles) + len(plan.lanes)
    if nodes > MOST_DRAWN:
        return format_html(
            '<p class="quiet">{} roles and {} lanes: too many for one picture.</p>', len(plan.roles), len(plan.lanes)
        )
    # to_svg escapes every name it writes
    drawing = mark_safe(to_svg(plan))  # noqa: S308
    return format_html('<div class="graph-frame" tabindex="0" role="group" aria-label="Graph">{}</div>', drawing)


def _lines(spec: str, diagnostics: list[dict[str, Any]]) -> SafeString:
    notes: dict[int, list[dict[str, Any]]] = {}
    for item in diagnostics:
        notes.setdefault(int(item["line"]), []).append(item)
    rows = []
    for number, line in enumerate(spec.splitlines() or [""], 1):
        here = notes.get(number, []) + (notes.get(0, []) if number == 1 else [])
        found = format_html_join(
            "",
            '<div class="diagnostic diagnostic-{}"><code>{}</code> {} <em>{}</em></div>',
            ((d["severity"], d["code"], d["message"], d["hint"]) for d in here),
        )
        rows.append((number, line, found))
    body = format_html_join("", "<tr><th>{}</th><td><code>{}</code>{}</td></tr>", rows)
    return format_html('<table class="source"><tbody>{}</tbody></table>', body)


@admin.register(PipelineDraft)
class PipelineDraftAdmin(ScopedModelAdmin):
    """Drafts."""

    list_display = ("name", "state", "where", "updated_at")
    list_filter = ("status", *SCOPE_FILTERS)
    audit_kind = "draft"
    search_fields = ("name",)
    fields = ("name", "where", "state", "spec_hash", "text", "created_by_name", "created_at", "updated_at")

    @admin.display(description="status")
    def state(self, row: PipelineDraft) -> str:
        return status_badge(row.status)

    @admin.display(description="spec")
    def text(self, row: PipelineDraft) -> str:
        return _lines(row.spec, row.diagnostics)


@admin.register(PipelineVersion)
class PipelineVersionAdmin(ScopedModelAdmin):
    """Read-only admin of versions."""

    list_display = ("name", "number", "where", "spec_hash", "created_by_name", "created_at")
    list_filter = SCOPE_FILTERS
    audit_kind = "version"
    search_fields = ("name", "spec_hash")
    fields = (
        "name", "number", "where", "spec_hash", "target", "capabilities_shown", "graph", "text", "draft_id",
        "copied_from", "created_by_name", "created_at",
    )  # fmt: skip

    @admin.display(description="graph")
    def graph(self, row: PipelineVersion) -> str:
        return graph_of(row.spec)

    @admin.display(description="spec")
    def text(self, row: PipelineVersion) -> str:
        return _lines(row.spec, [])
