"""The text layer: bytes or characters to `key → (value, line)`, with every malformed line found."""

from __future__ import annotations

import re
from typing import NamedTuple

from apps.runtime.spec.diagnostics import Findings, clip

MAX_BYTES = 256 * 1024
MAX_LINES = 4096

# a whole line that is as it should be: nearly all of them are, and are read by this alone
_LINE = re.compile(r"([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)=((?! )[\x20-\x7e]*)\r?")
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")
_KEY = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
_INDEX_DIGITS = 6
_NUMBER_DIGITS = 9


class Entry(NamedTuple):
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
        match = _LINE.fullmatch(raw)
        entry = Entry(match[1], match[2], number) if match else _read_odd_line(raw.removesuffix("\r"), number, found)
        if entry is None:
            continue
        first = entries.setdefault(entry.key, entry)
        if first is not entry:
            message = f"{clip(entry.key)} was already given in line {first.line}."
            found.add("duplicate_key", number, entry.key, message, "Keep one of the two lines.")
    return entries


def _read_odd_line(line: str, number: int, found: Findings) -> Entry | None:
    """A line that is not simply `key=value`: a comment, blank, or wrong, which is reported; read as well as possible."""
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
    """`text`, which is ASCII, as an index; None when it is not decimal without leading zeros."""
    return _whole(text, _INDEX_DIGITS)


def number_of(text: str) -> int | None:
    """`text`, which is ASCII, as a whole number up to nine digits; None when it is anything else."""
    return _whole(text, _NUMBER_DIGITS)


def _whole(text: str, digits: int) -> int | None:
    if not text.isdigit() or len(text) > digits or (text[0] == "0" and len(text) > 1):
        return None
    return int(text)
