"""The text layer: bytes or characters to `key → (value, line)`, with every malformed line found."""

from __future__ import annotations

import re
from dataclasses import dataclass

from apps.runtime.spec.diagnostics import Findings, clip

MAX_BYTES = 256 * 1024
MAX_LINES = 4096

_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")
_KEY = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
_INDEX = re.compile(r"0|[1-9][0-9]{0,5}")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One `key=value` line."""

    key: str
    value: str
    line: int


def read_lines(text: str | bytes, found: Findings) -> dict[str, Entry] | None:
    """The well-formed lines by key, first one winning; None when the text is over a limit.

    Lines end with LF or CRLF. Blank lines and lines that begin with `#` are skipped. Bytes are taken as
    Latin-1 here only so that each byte that is not ASCII is reported at its line; a comment may hold
    anything.
    """
    if isinstance(text, bytes):
        size, characters = len(text), None
    else:
        size, characters = len(text), text
        if size <= MAX_BYTES and not text.isascii():
            size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        found.add("too_large", 0, "", f"The spec has more than {MAX_BYTES} bytes.", "Split the pipeline.")
        return None
    if characters is None:
        characters = text.decode("latin-1") if isinstance(text, bytes) else text
    lines = characters.split("\n")
    if lines[-1] == "":
        lines.pop()
    if len(lines) > MAX_LINES:
        message = f"The spec has {len(lines)} lines; {MAX_LINES} are allowed."
        found.add("too_many_lines", 0, "", message, "Remove comments and blank lines, or split the pipeline.")
        return None
    entries: dict[str, Entry] = {}
    for number, raw in enumerate(lines, start=1):
        entry = _read_line(raw.removesuffix("\r"), number, found)
        if entry is None:
            continue
        first = entries.setdefault(entry.key, entry)
        if first is not entry:
            message = f"{clip(entry.key)} was already given in line {first.line}."
            found.add("duplicate_key", number, entry.key, message, "Keep one of the two lines.")
    return entries


def _read_line(line: str, number: int, found: Findings) -> Entry | None:
    if line.startswith("#") or not line.strip(" \t"):
        return None
    bad = _UNPRINTABLE.search(line)
    key, equals, value = line.partition("=")
    if bad is not None:
        hint = "Write plain ASCII, without tabs, control characters or a byte order mark."
        message = f"Character {bad.start() + 1} of the line is not printable ASCII."
        found.add("bad_character", number, key if equals else "", message, hint)
        return None
    if not equals:
        found.add("no_equals", number, "", f"'{clip(line, 40)}' has no '='.", "Write key=value, or begin with '#'.")
        return None
    if key.endswith(" ") or value.startswith(" "):
        message = "There is white space around '='."
        found.add("space_around_equals", number, key.strip(), message, f"Write {clip(key.strip())}=value.")
        key, value = key.rstrip(" "), value.lstrip(" ")
    if not _KEY.fullmatch(key):
        message = f"'{clip(key, 40)}' is not a key."
        found.add("bad_key", number, key, message, "A key is words of a-z, 0-9 and _ with dots between them.")
        return None
    return Entry(key, value, number)


def index_of(text: str) -> int | None:
    """`text` as an index, None when it is not decimal without leading zeros."""
    return int(text) if _INDEX.fullmatch(text) else None


def number_of(text: str) -> int | None:
    """`text` as a whole number up to nine digits, None when it is anything else."""
    return int(text) if _NUMBER.fullmatch(text) else None
