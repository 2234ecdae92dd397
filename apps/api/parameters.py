"""Query parameters: of single resources (`Parameter`), and the filters of lists (`Filter`). Both describe themselves."""

from __future__ import annotations

import datetime as dt
import functools
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from django.db import models
from django.utils.dateparse import parse_datetime
from rest_framework.request import Request

from apps.api.problems import shortened
from apps.core.errors import BadRequest, FieldError
from apps.core.ids import parse_id

Rows = models.QuerySet[Any]
Schema = Mapping[str, object]

EARLIEST, LATEST = dt.datetime(1970, 1, 1, tzinfo=dt.UTC), dt.datetime(9998, 1, 1, tzinfo=dt.UTC)
"""Range of times that a filter accepts. Both databases and UUIDv7 ids can represent all of it without overflow."""


def bad_parameter(name: str, detail: str, code: str = "bad_parameter") -> BadRequest:
    """The 400 for a query parameter."""
    return BadRequest(detail, code=code, errors=[FieldError(f"?{shortened(name)}", code, detail)])


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError
    return text == "true"


def _integer(most: int, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 19) or int(text) > most:
        raise ValueError
    return int(text)


def _id(text: str) -> uuid.UUID:
    found = parse_id(text)
    if found is None:
        raise ValueError
    return found


@dataclass(frozen=True, slots=True)
class Parameter:
    """A query parameter: `read` converts its text or raises ValueError; `expected` describes what it accepts, `schema` as JSON
    Schema."""

    read: Callable[[str], Any]
    expected: str
    schema: Schema
    default: Any = None


BOOLEAN = Parameter(_boolean, "true or false", {"type": "boolean"}, default=False)
ID = Parameter(_id, "a UUID", {"type": "string", "format": "uuid"})


def integer(most: int) -> Parameter:
    """An integer from 0 to `most`; 0 if absent."""
    schema = {"type": "integer", "minimum": 0, "maximum": most}
    return Parameter(functools.partial(_integer, most), f"one integer from 0 to {most}", schema, default=0)


def check_parameters(
    request: Request, known: Mapping[str, Parameter], *, ignores_unknown: bool = False
) -> dict[str, Any]:
    """Return the values of the parameters in `known`. Raises BadRequest `bad_parameter`.

    Unknown and repeated parameters are refused; unknown ones are ignored with `ignores_unknown`.
    """
    given = request.query_params
    for name in given:
        if (name not in known and not ignores_unknown) or (name in known and len(given.getlist(name)) > 1):
            raise bad_parameter(name, f"'{shortened(name)}' is not a parameter of this endpoint, or is repeated.")
    values = {}
    for name, each in known.items():
        try:
            values[name] = each.read(given[name]) if name in given else each.default
        except ValueError:
            raise bad_parameter(name, f"Expected {each.expected}.") from None
    return values


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter of a list: `narrow(rows, text)` or ValueError; `expected` and `schema` describe what it accepts."""

    narrow: Callable[[Rows, str], Rows]
    schema: Callable[[], Schema]
    expected: str = ""

    def apply(self, name: str, rows: Rows, text: str) -> Rows:
        """Narrow `rows` by the text of the parameter `name`. Raises BadRequest `bad_filter`."""
        try:
            return self.narrow(rows, text)
        except ValueError:
            raise bad_parameter(name, f"Expected {self.expected or _choices(self.schema())}.", "bad_filter") from None


def _choices(schema: Schema) -> str:
    known = schema["enum"]
    assert isinstance(known, list)
    return f"one of {', '.join(known)}"


def choice_filter(
    values: Iterable[str] | Callable[[], Iterable[str]], narrow: str | Callable[[Rows, str], Rows]
) -> Filter:
    """A filter by one of `values`, which can be a function; `narrow` is the field, or narrows the rows itself."""

    def known() -> list[str]:
        return sorted(values() if callable(values) else values)

    def apply(rows: Rows, text: str) -> Rows:
        if text not in known():
            raise ValueError
        return rows.filter(**{narrow: text}) if isinstance(narrow, str) else narrow(rows, text)

    return Filter(apply, lambda: {"type": "string", "enum": known()})


def status_filter(values: Iterable[str], field: str = "status") -> Filter:
    """A `?status=` filter that refuses a status the model does not have."""
    return choice_filter(values, field)


def boolean_filter(narrow: Callable[[Any, bool], Rows]) -> Filter:
    """A filter that accepts `true` or `false` and passes it to `narrow(rows, wanted)`."""
    return Filter(lambda rows, text: narrow(rows, _boolean(text)), lambda: BOOLEAN.schema, BOOLEAN.expected)


def exact_filter(field: str) -> Filter:
    """A filter that matches the exact value of `field`."""
    return Filter(lambda rows, text: rows.filter(**{field: text}), lambda: {"type": "string"})


def id_filter(field: str) -> Filter:
    """A filter that accepts an id in its canonical form."""
    return Filter(lambda rows, text: rows.filter(**{field: _id(text)}), lambda: ID.schema, ID.expected)


def text_filter(*fields: str) -> Filter:
    """A `?q=` filter: case-insensitive 'contains' over `fields`."""

    def apply(rows: Rows, text: str) -> Rows:
        match = models.Q()
        for name in fields:
            match |= models.Q(**{f"{name}__icontains": text})
        return rows.filter(match)

    return Filter(apply, lambda: {"type": "string"})


def parse_moment(name: str, text: str) -> dt.datetime:
    """The time that the parameter `name` gives. Raises BadRequest `bad_filter`."""
    try:
        value = parse_datetime(text.replace(" ", "+"))
    except ValueError:
        value = None
    if value is None or value.tzinfo is None:
        raise bad_parameter(name, "An RFC 3339 time with an offset is expected.", "bad_filter")
    # compared before conversion to UTC, which could overflow
    if not EARLIEST <= value < LATEST:
        raise bad_parameter(name, "A time from 1970 to 9997 is expected.", "bad_filter")
    return value.astimezone(dt.UTC)


def included_members(request: Request, *long_members: str) -> frozenset[str]:
    """The members of `long_members` that `?include=` (a comma-separated list) asks for. Raises BadRequest for others."""
    text = request.query_params.get("include")
    wanted = frozenset(text.split(",")) if text is not None else frozenset()
    if not wanted <= set(long_members):
        raise bad_parameter(
            "include", f"A comma-separated list of {', '.join(long_members)} is expected.", "bad_filter"
        )
    return wanted
