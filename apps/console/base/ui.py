"""Helpers of console pages: badges, JSON and error messages."""

from __future__ import annotations

import json

from django.contrib import messages
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString

from apps.core.errors import ServiceError

REFUSED, UNCHANGED = "_service_refused", "_nothing_changed"
"""Attributes set on a request: the error of a service, and that a form was submitted without changes."""


def add_error_message(request: HttpRequest, error: ServiceError) -> None:
    """Add a message about a refused write: its detail, its field errors and its code."""
    parts = [error.detail, *(f"{e.pointer}: {e.detail}" for e in error.errors)]
    if blockers := error.extra.get("blockers"):
        parts += [str(b) for b in blockers] if isinstance(blockers, list) else []
    messages.error(request, " ".join(parts), extra_tags=f"code-{error.code}")


def format_json(value: object) -> SafeString:
    """Format JSON for display."""
    return format_html('<pre class="json">{}</pre>', json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True))


def status_badge(text: str) -> SafeString:
    """Render a status as a coloured badge with the class `badge-<status>`; underscores are shown as spaces."""
    return format_html('<span class="badge badge-{}">{}</span>', text.replace(" ", "-"), text.replace("_", " "))
