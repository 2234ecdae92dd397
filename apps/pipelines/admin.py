"""Drafts with diagnostics at their lines; versions with their text and graph."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe

from apps.access.admin import ScopedModelAdmin, pill
from apps.pipelines.models import PipelineDraft, PipelineVersion
from apps.runtime.spec import compile_spec, to_svg


def graph_of(text: str) -> SafeString:
    """The spec's graph as SVG, in a frame that scrolls where it is wider than the page; empty while it does not compile."""
    plan = compile_spec(text).plan
    if plan is None:
        return SafeString("")
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

    list_display = ("name", "state", "environment", "updated_at")
    list_select_related = ("environment",)
    search_fields = ("name",)
    fields = ("name", "environment", "state", "spec_hash", "text", "created_by_name", "created_at", "updated_at")

    @admin.display(description="status")
    def state(self, row: PipelineDraft) -> str:
        return pill(row.status)

    @admin.display(description="spec")
    def text(self, row: PipelineDraft) -> str:
        return _lines(row.spec, row.diagnostics)


@admin.register(PipelineVersion)
class PipelineVersionAdmin(ScopedModelAdmin):
    """Versions never change."""

    list_display = ("name", "number", "environment", "spec_hash", "created_by_name", "created_at")
    list_select_related = ("environment",)
    search_fields = ("name", "spec_hash")
    fields = (
        "name", "number", "environment", "spec_hash", "target", "capabilities_shown", "graph", "text", "draft_id",
        "copied_from", "created_by_name", "created_at",
    )  # fmt: skip

    @admin.display(description="graph")
    def graph(self, row: PipelineVersion) -> str:
        return graph_of(row.spec)

    @admin.display(description="spec")
    def text(self, row: PipelineVersion) -> str:
        return _lines(row.spec, [])
