"""Template tags of the console."""

from __future__ import annotations

import datetime as dt
import json

from django import template
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from apps.console.base import ui

register = template.Library()


@register.filter
def status_badge(status: object) -> SafeString:
    """Render a status as a coloured badge."""
    return ui.status_badge(str(status))


@register.filter
def as_json(value: object) -> str:
    """A JSON value on one line."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


@register.filter
def utc(moment: dt.datetime | None) -> SafeString:
    """Render a time to the second, in UTC, as a `time` element; a dash for None."""
    if moment is None:
        return SafeString("–")
    here = moment.astimezone(dt.UTC) if timezone.is_aware(moment) else moment
    return format_html('<time datetime="{}">{} UTC</time>', f"{here:%Y-%m-%dT%H:%M:%SZ}", f"{here:%Y-%m-%d %H:%M:%S}")
