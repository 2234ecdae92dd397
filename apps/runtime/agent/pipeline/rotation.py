"""The names under which files that were rotated are found again."""

from __future__ import annotations

import re

_TURN = re.compile(r"[._-](\d[\d._:TtZz+-]*)")


def rotated_name(name: str, of: str) -> tuple[int, str] | None:
    """How late `name` is among the rotated files of `of`, as a key to sort by; None when it is not named like one.

    Such a name has a number or a date behind it (`in.jsonl.1`, `in.jsonl-20260131`) or before its extension (`in-20260131.jsonl`).
    Of two numbers the greater is the older file, of two dates the lesser. Compressed files have other names.
    """
    stem, dot, extension = of.rpartition(".")
    middles = [(of, "")] + ([(stem, dot + extension)] if stem else [])
    for before, after in middles:
        if not (name.startswith(before) and name.endswith(after) and len(name) > len(before) + len(after)):
            continue
        found = _TURN.fullmatch(name[len(before) : len(name) - len(after)])
        if found is not None:
            text = found.group(1)
            return (-int(text), "") if text.isdigit() and len(text) < 6 else (0, text)
    return None
