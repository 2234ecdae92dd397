"""JSON records (RFC 8259): bytes to values and back, without touching what no op touches.

A number is kept as the text it was written as, so that `1.10`, `1e3` and integers beyond 2^53 come out as
they came in. Output is compact, in UTF-8, keys in the order of the input, nothing escaped that need not be.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from json.encoder import encode_basestring, encode_basestring_ascii
from typing import TypeAlias

MAX_DEPTH = 64


class Refused(Exception):
    """An op does not let this record pass.

    `message` names places, never values: those may be what is guarded.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Number:
    """A JSON number as it was written."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def value(self) -> Decimal | None:
        """Its exact value, None when the exponent is beyond what can be held."""
        try:
            return Decimal(self.text)
        except InvalidOperation:
            return None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Number) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Number({self.text!r})"


Value: TypeAlias = "bool | str | Number | list[Value] | dict[str, Value] | None"


def _object(pairs: list[tuple[str, Value]]) -> dict[str, Value]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise Refused("duplicate_key", "An object names a key twice.")
    return value


def _constant(name: str) -> Value:
    raise Refused("not_json", f"{name} is not JSON.")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=Number, parse_float=Number, parse_constant=_constant)
_WHITE_SPACE = " \t\n\r"


def parse_record(data: bytes) -> dict[str, Value]:
    """The JSON object in `data`. Raises Refused: `not_json`, `not_an_object`, `duplicate_key`, `too_deep`.

    A repeated key is refused because readers disagree on which one counts: a redacted one could hide another.
    """
    try:
        text = data.decode("utf-8").strip(_WHITE_SPACE)
        value: Value
        value, end = _DECODER.raw_decode(text)
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise Refused("not_json", "The record is not JSON in UTF-8.") from None
    except RecursionError:
        raise Refused("too_deep", f"The record is nested deeper than {MAX_DEPTH}.") from None
    if end != len(text):
        raise Refused("not_json", "The record is not JSON in UTF-8.")
    if not isinstance(value, dict):
        raise Refused("not_an_object", "The record is not a JSON object.")
    # only what has so many brackets at all can be nested so deep
    if data.count(b"{") + data.count(b"[") > MAX_DEPTH and _deeper_than(value, MAX_DEPTH):
        raise Refused("too_deep", f"The record is nested deeper than {MAX_DEPTH}.")
    return value


def _deeper_than(value: Value, depth: int) -> bool:
    level: list[Value] = [value]
    for _ in range(depth):
        below: list[Value] = []
        for item in level:
            if isinstance(item, dict):
                below += [child for child in item.values() if isinstance(child, dict | list)]
            elif isinstance(item, list):
                below += [child for child in item if isinstance(child, dict | list)]
        if not below:
            return False
        level = below
    return True


def write_record(value: Value) -> bytes:
    """`value` as compact JSON in UTF-8, keys in their order."""
    return _written(value, in_order=False)


def canonical_bytes(value: Value) -> bytes:
    """`value` for hashing:

    as `write_record`, but keys sorted by code point. Numbers stay as they were written.
    """
    return _written(value, in_order=True)


def _written(value: Value, *, in_order: bool) -> bytes:
    parts: list[str] = []
    _append(value, parts, in_order, encode_basestring)
    try:
        return "".join(parts).encode("utf-8")
    except UnicodeEncodeError:
        parts.clear()
        _append(value, parts, in_order, _quoted)
        return "".join(parts).encode("utf-8")


def _append(value: Value, parts: list[str], in_order: bool, quoted: Callable[[str], str]) -> None:
    if isinstance(value, dict):
        separator = "{"
        for key in sorted(value) if in_order else value:
            item = value[key]
            # a string or a number is what most members are: it is written here, without a call of its own
            if isinstance(item, str):
                parts.append(f"{separator}{quoted(key)}:{quoted(item)}")
            elif isinstance(item, Number):
                parts.append(f"{separator}{quoted(key)}:{item.text}")
            else:
                parts.append(f"{separator}{quoted(key)}:")
                _append(item, parts, in_order, quoted)
            separator = ","
        parts.append("}" if value else "{}")
    elif isinstance(value, str):
        parts.append(quoted(value))
    elif isinstance(value, Number):
        parts.append(value.text)
    elif value is None or isinstance(value, bool):
        parts.append("null" if value is None else "true" if value else "false")
    else:
        separator = "["
        for item in value:
            parts.append(separator)
            _append(item, parts, in_order, quoted)
            separator = ","
        parts.append("]" if value else "[]")


def _quoted(text: str) -> str:
    """A string of which some may hold a lone surrogate, which can be written in JSON (\\ud800) but not in UTF-8."""
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        return encode_basestring_ascii(text)
    return encode_basestring(text)


def text_of(value: Value) -> str:
    """The characters that mask and truncate see: a string's own, anything else's canonical JSON."""
    return value if isinstance(value, str) else canonical_bytes(value).decode("utf-8")


def plain(value: object) -> Value:
    """A value of Python's `json` as a `Value`. Raises ValueError for what JSON can't hold."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return Number(int.__repr__(value))
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise ValueError("not a JSON number")
        return Number(float.__repr__(value))
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: plain(item) for key, item in value.items()}
    raise ValueError("not a JSON value")


def same(one: Value, other: Value) -> bool:
    """Equality as JSON Schema means it:

    1, 1.0 and 1e0 are equal, key order does not matter, true is not 1.
    """
    if isinstance(one, Number) and isinstance(other, Number):
        first, second = one.value(), other.value()
        return one.text == other.text or (first is not None and second is not None and first == second)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(item, other[key]) for key, item in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other
