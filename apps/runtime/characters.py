"""Characters that a reader can't see, or that change how the text around them is drawn.

A text that a reviewer judges must not hold them unseen (CVE-2021-42574): screens show each as an escape, and names
that are compared with data refuse them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"})
# Default_Ignorable_Code_Point of the Unicode Character Database (DerivedCoreProperties.txt) outside of those categories
_IGNORABLE = (
    (0x034F, 0x034F),
    (0x115F, 0x1160),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),
    (0xFFA0, 0xFFA0),
    (0xE0100, 0xE01EF),
)
_ORDINARY = re.compile(r"[^ -~\n]")


def is_hidden(character: str) -> bool:
    """Whether `character` is invisible or changes the text around it.

    True for the general categories Cc, Cf, Cs, Co, Cn, Zl, Zp and Zs and for default-ignorable code points; False for
    the space U+0020 and the line feed.
    """
    if character in " \n":
        return False
    code = ord(character)
    return unicodedata.category(character) in _CATEGORIES or any(low <= code <= high for low, high in _IGNORABLE)


def hidden_in(text: str) -> list[str]:
    """The hidden characters of `text`, each once, in order of appearance."""
    return list(dict.fromkeys(c for c in _ORDINARY.findall(text) if is_hidden(c)))


def replace_hidden(text: str, escape: Callable[[str], str]) -> str:
    """`text` with each hidden character replaced by what `escape` answers for it."""
    return _ORDINARY.sub(lambda match: escape(match[0]) if is_hidden(match[0]) else match[0], text)


def code_point(character: str) -> str:
    """`U+202E` for a character, as the Unicode Standard writes it."""
    return f"U+{ord(character):04X}"


def name_of(character: str) -> str:
    """The character's name in the Unicode Character Database; `control character` and the like where it has none."""
    unnamed = {"Cc": "control character", "Co": "private use", "Cs": "surrogate", "Cn": "unassigned"}
    return unicodedata.name(character, "") or unnamed.get(unicodedata.category(character), "unnamed")
