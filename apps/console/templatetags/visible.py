"""Template filters for text from users or hosts."""

from __future__ import annotations

from collections.abc import Iterable

from django import template
from django.utils.html import format_html_join

from apps.core import visible as text

register = template.Library()


@register.filter
def visible(value: object) -> str:
    """The text in `<bdi>` with hidden characters as marked escapes; empty for None."""
    return "" if value is None else text.visible(value)


@register.filter
def visible_text(value: object) -> str:
    """The text with hidden characters as `[U+202E]`, without markup: for `<title>`, `<option>` and attributes."""
    return "" if value is None else text.visible_text(value)


@register.filter
def visible_list(values: Iterable[object]) -> str:
    """Each of `values` as by `visible`, separated by commas."""
    return format_html_join(", ", "{}", ((text.visible(value),) for value in values))
