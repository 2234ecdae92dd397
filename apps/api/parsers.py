"""Strict parsing of JSON bodies (RFC 8259; no duplicate names, as in RFC 7493)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import IO, Any, NoReturn

from django.core.exceptions import RequestDataTooBig
from rest_framework.parsers import BaseParser

from apps.core.errors import BadRequest, TooLarge

MAX_DEPTH = 64


def _no_constant(text: str) -> NoReturn:
    raise BadRequest(f"{text} is not JSON.", code="malformed_json")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise BadRequest("An object has a duplicate key.", code="duplicate_key")
    return value


def _bounded_int(text: str) -> int:
    if len(text) > 20:
        raise BadRequest("A number has too many digits.", code="malformed_json")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise BadRequest("A number is out of range.", code="malformed_json")
    return value


def _too_deep(data: bytes) -> bool:
    depth = deepest = 0
    in_string = escaped = False
    for byte in data:
        if in_string:
            if escaped:
                escaped = False
            elif byte == 0x5C:
                escaped = True
            elif byte == 0x22:
                in_string = False
        elif byte == 0x22:
            in_string = True
        elif byte in (0x7B, 0x5B):
            depth += 1
            if depth > deepest:
                deepest = depth
                if deepest > MAX_DEPTH:
                    return True
        elif byte in (0x7D, 0x5D):
            depth -= 1
    return False


def parse_json(data: bytes) -> Any:
    """Parse `data` as JSON.

    Raises BadRequest unless it is UTF-8 JSON without duplicate keys, lone surrogates or NUL characters, nested at most 64
    levels deep.
    """
    if data.count(b"{") + data.count(b"[") > MAX_DEPTH and _too_deep(data):
        raise BadRequest("The JSON is nested too deeply.", code="nested_too_deeply")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise BadRequest("The body is not UTF-8.", code="malformed_json") from None
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_int=_bounded_int,
            parse_float=_finite,
        )
    except (json.JSONDecodeError, RecursionError) as error:
        where = f" at line {error.lineno} column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise BadRequest(f"The body is not JSON{where}.", code="malformed_json") from None
    if "\\u" in text or "\x00" in text:
        _no_bad_characters(value)
    return value


def _no_bad_characters(value: Any) -> None:
    if isinstance(value, str):
        if "\x00" in value or any(0xD800 <= ord(c) <= 0xDFFF for c in value):
            raise BadRequest("Text contains a NUL or a lone surrogate.", code="malformed_json")
    elif isinstance(value, dict):
        for key, item in value.items():
            _no_bad_characters(key)
            _no_bad_characters(item)
    elif isinstance(value, list):
        for item in value:
            _no_bad_characters(item)


class StrictJSONParser(BaseParser):
    """DRF parser for `application/json` and `application/merge-patch+json` by `parse_json`."""

    media_type = "application/json"

    def parse(
        self, stream: IO[Any], media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> Any:
        try:
            data = stream.read()
        except RequestDataTooBig:
            raise TooLarge() from None
        except OSError:
            raise BadRequest("The body ended early.", code="malformed_body") from None
        return parse_json(data) if data.strip() else {}


class MergePatchParser(StrictJSONParser):
    """DRF parser for JSON Merge Patch bodies (RFC 7396)."""

    media_type = "application/merge-patch+json"
