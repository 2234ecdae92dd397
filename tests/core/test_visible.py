"""Invisible characters, and those that change how the text around them is drawn, are shown as escapes."""

from __future__ import annotations

import pytest
from django.template import engines
from django.utils.safestring import mark_safe

from apps.core.visible import visible, visible_page, visible_text
from apps.runtime.characters import hidden_in, is_hidden

HIDDEN = {
    "control": "\x00\x07\t\r\x1b\x7f\x85",
    "format": "\u200b\u200e\u202e\u2066\u2069\ufeff\u00ad\U000e0041",
    "surrogate": "\ud800",
    "private use": "\ue000\U000f0000",
    "unassigned": "\u0378\U000e01f0",
    "separators": "\u2028\u2029",
    "spaces": "\u00a0\u1680\u2003\u202f\u3000",
    "default-ignorable": "\u034f\u115f\u17b4\u180b\u3164\ufe0f\uffa0\U000e0100",
}


@pytest.mark.parametrize("kind", HIDDEN)
def test_each_kind_of_hidden_character_is_an_escape_in_a_marked_element(kind: str) -> None:
    for character in HIDDEN[kind]:
        assert is_hidden(character)
        shown = visible(f"a{character}b")
        assert character not in shown
        assert f'">U+{ord(character):04X}</mark>' in shown
        assert visible_text(f"a{character}b") == f"a[U+{ord(character):04X}]b"


def test_visible_characters_are_unchanged() -> None:
    text = "Ünïcode, 日本語, עברית, e\u0301, 🙂 and\nlines"
    assert hidden_in(text) == []
    assert visible(text) == f"<bdi>{text}</bdi>"


def test_markup_in_a_text_stays_text_and_safe_markup_stays_markup() -> None:
    assert visible("<b>&\u202e") == (
        '<bdi>&lt;b&gt;&amp;<mark class="escape" title="RIGHT-TO-LEFT OVERRIDE">U+202E</mark></bdi>'
    )
    assert visible(mark_safe("<b>")) == "<b>"
    engine = engines["django"]
    template = engine.from_string("{% load visible %}{{ a|visible }} {{ a|visible_text }} {{ none|visible }}")
    assert template.render({"a": "\u200b<", "none": None}) == (
        '<bdi><mark class="escape" title="ZERO WIDTH SPACE">U+200B</mark>&lt;</bdi> [U+200B]&lt; '
    )


def test_a_page_shows_every_hidden_character_and_keeps_form_values_as_typed() -> None:
    page = (
        '<title>a\u202eb</title>\n\t<p title="\u200b">x\u202e</p><option>o\u2028</option>'
        '<textarea>t\u202e</textarea><input value="v\u202e"><button value="w\u202e">b\u202e</button>'
    )
    mark = '<mark class="escape" title="RIGHT-TO-LEFT OVERRIDE">U+202E</mark>'
    assert visible_page(page) == (
        f'<title>a[U+202E]b</title>\n\t<p title="[U+200B]">x{mark}</p><option>o[U+2028]</option>'
        f'<textarea>t\u202e</textarea><input value="v\u202e"><button value="w\u202e">b{mark}</button>'
    )
    plain = "<p>ü – “quoted” …</p>\r\n"
    assert visible_page(plain) is plain
