"""Display of user-supplied text: invisible characters are shown, and none affects the text around it."""

from __future__ import annotations

import re

from django.utils.html import escape
from django.utils.safestring import SafeString, mark_safe

from apps.runtime.characters import code_point, is_hidden, name_of, replace_hidden


def _marked(character: str) -> str:
    return f'<mark class="escape" title="{escape(name_of(character))}">{code_point(character)}</mark>'


def visible_html(text: object) -> SafeString:
    """Escape `text` for HTML and show each hidden character (`runtime.characters`) as `<mark
    class="escape">U+202E</mark>`."""
    # HTML's special characters are visible, so escaping first keeps every hidden character
    return mark_safe(replace_hidden(str(escape(str(text))), _marked))  # noqa: S308 - escaped, and marked by us


def visible(text: object) -> SafeString:
    """`visible_html` inside `<bdi>`, which isolates its direction. Safe markup is returned unchanged."""
    if isinstance(text, SafeString):
        return text
    return mark_safe(f"<bdi>{visible_html(text)}</bdi>")  # noqa: S308


def visible_text(text: object) -> str:
    """Show each hidden character as `[U+202E]`: for titles, options and attributes, which can't hold markup."""
    return replace_hidden(str(text), lambda character: f"[{code_point(character)}]")


_TOKENS = re.compile(r"(<!--.*?-->|<[^>]*>)", re.DOTALL)
_TAG = re.compile(r"</?([a-zA-Z0-9]+)")
_LAYOUT = "\t\r\f"
_AS_TYPED = ("input", "textarea", "button", "script", "style")
"""Form values stay as typed; otherwise saving the form would change them."""
_TEXT_ONLY = ("title", "option")


def visible_page(html: str) -> str:
    """Make every hidden character of a rendered page visible, whichever template wrote it.

    Text gets the same marks as `visible` gives; attributes and elements without markup get `[U+202E]`. Form values stay
    as typed, and so do tabs and carriage returns, which are layout.
    """
    if not any(is_hidden(character) for character in set(html) - set(_LAYOUT)):
        return html

    def marked(character: str) -> str:
        return character if character in _LAYOUT else _marked(character)

    def plain(character: str) -> str:
        return character if character in _LAYOUT else f"[{code_point(character)}]"

    parts, inside = [], ""
    for token in _TOKENS.split(html):
        tag = _TAG.match(token)
        if tag is not None:
            name = tag[1].lower()
            parts.append(token if name in _AS_TYPED else replace_hidden(token, plain))
            inside = "" if token.startswith("</") else name
        elif inside in _AS_TYPED and inside != "button":
            parts.append(token)
        else:
            parts.append(replace_hidden(token, plain if inside in _TEXT_ONLY else marked))
    return "".join(parts)
