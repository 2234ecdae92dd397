"""Lists: keyset on the UUIDv7 id, newest first. A page costs the same however many rows there are."""

from __future__ import annotations

import base64
import datetime as dt
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from django.db import models
from django.utils.dateparse import parse_datetime
from rest_framework.request import Request
from rest_framework.response import Response

from apps.core.errors import BadRequest, FieldError
from apps.core.ids import first_id_at

M = TypeVar("M", bound=models.Model)
Filter = Callable[[models.QuerySet[Any], str], models.QuerySet[Any]]

DEFAULT_LIMIT = 50
MAX_LIMIT = 200
ID_SLACK = dt.timedelta(minutes=5)
"""An id says when it was made. A row's `created_at` is never further from that; so a filter by time begins where its ids do, and
does not read through all that is newer."""


def _encode(direction: str, row_id: uuid.UUID) -> str:
    return base64.urlsafe_b64encode(direction.encode() + row_id.bytes).decode().rstrip("=")


def _decode(cursor: str) -> tuple[str, uuid.UUID]:
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        direction, row_id = raw[:1].decode("ascii"), uuid.UUID(bytes=raw[1:])
    except (ValueError, UnicodeDecodeError):
        raise _bad("cursor", "This cursor was not given out here.", "bad_cursor") from None
    if direction not in ("n", "p"):
        raise _bad("cursor", "This cursor was not given out here.", "bad_cursor")
    return direction, row_id


def _bad(name: str, detail: str, code: str) -> BadRequest:
    return BadRequest(detail, code=code, errors=[FieldError(f"?{name}", code, detail)])


def _moment(name: str, text: str) -> dt.datetime:
    try:
        value = parse_datetime(text.replace(" ", "+"))
    except ValueError:
        value = None
    if value is None or value.tzinfo is None:
        raise _bad(name, "An RFC 3339 time with an offset is expected.", "bad_filter")
    return value


def status_filter(values: Iterable[str], field: str = "status") -> Filter:
    """A `?status=` filter that refuses a status the model does not have."""
    known = frozenset(values)

    def apply(rows: models.QuerySet[Any], value: str) -> models.QuerySet[Any]:
        if value not in known:
            raise _bad("status", f"One of {', '.join(sorted(known))} is expected.", "bad_filter")
        return rows.filter(**{field: value})

    return apply


def truth_filter(name: str, narrow: Callable[[Any, bool], models.QuerySet[Any]]) -> Filter:
    """A filter that takes `true` or `false` and gives it to `narrow(rows, wanted)`."""

    def apply(rows: models.QuerySet[Any], value: str) -> models.QuerySet[Any]:
        if value not in ("true", "false"):
            raise _bad(name, "true or false is expected.", "bad_filter")
        return narrow(rows, value == "true")

    return apply


def text_filter(*fields: str) -> Filter:
    """A `?q=` filter: case-insensitive 'contains' over `fields`."""

    def apply(rows: models.QuerySet[Any], value: str) -> models.QuerySet[Any]:
        if len(value) > 200 or "\x00" in value:
            raise _bad("q", "At most 200 characters, without NUL.", "bad_filter")
        match = models.Q()
        for name in fields:
            match |= models.Q(**{f"{name}__icontains": value})
        return rows.filter(match)

    return apply


def keyset_page(
    request: Request,
    rows: models.QuerySet[M],
    render: Callable[[M], Mapping[str, object]],
    *,
    filters: Mapping[str, Filter] | None = None,
    prepare: Callable[[Sequence[M]], None] | None = None,
) -> Response:
    """One page of `rows` as `{"results", "next", "previous"}`.

    `filters` maps query parameters to what they do; `limit`, `cursor`, `created_after` and `created_before` are always
    there. `prepare` sees the page's rows before they are rendered (to fetch what they need in one query).
    Raises BadRequest on an unknown parameter, a repeated one, a bad limit, cursor or value.
    """
    known = filters or {}
    parameters = request.query_params
    always = {"limit", "cursor", "created_after", "created_before"}
    for name in parameters:
        if name not in known and name not in always:
            raise _bad(name, f"'{name[:64]}' is not a filter here.", "unknown_filter")
        if len(parameters.getlist(name)) > 1:
            raise _bad(name, f"'{name}' is given twice.", "bad_filter")
    limit_text = parameters.get("limit", str(DEFAULT_LIMIT))
    if (
        not (limit_text.isascii() and limit_text.isdigit() and len(limit_text) <= 4)
        or not 1 <= int(limit_text) <= MAX_LIMIT
    ):
        raise _bad("limit", f"A whole number from 1 to {MAX_LIMIT} is expected.", "bad_limit")
    limit = int(limit_text)
    if "created_after" in parameters:
        moment = _moment("created_after", parameters["created_after"])
        rows = rows.filter(created_at__gt=moment, pk__gte=first_id_at(moment - ID_SLACK))
    if "created_before" in parameters:
        moment = _moment("created_before", parameters["created_before"])
        rows = rows.filter(created_at__lt=moment, pk__lte=first_id_at(moment + ID_SLACK))
    for name, apply in known.items():
        if name in parameters:
            rows = apply(rows, parameters[name])

    direction, anchor = _decode(parameters["cursor"]) if "cursor" in parameters else ("n", None)
    if direction == "n":
        page = list((rows.filter(pk__lt=anchor) if anchor else rows).order_by("-pk")[: limit + 1])
        more_older, more_newer = len(page) > limit, anchor is not None
        page = page[:limit]
    else:
        newer = list(rows.filter(pk__gt=anchor).order_by("pk")[: limit + 1])
        more_newer, more_older = len(newer) > limit, True
        page = newer[:limit][::-1]
    if prepare is not None:
        prepare(page)

    def link(kind: str, row: M) -> str:
        query = parameters.copy()
        query["cursor"] = _encode(kind, row.pk)
        return request.build_absolute_uri(f"{request.path}?{query.urlencode()}")

    return Response(
        {
            "results": [render(row) for row in page],
            "next": link("n", page[-1]) if page and more_older else None,
            "previous": link("p", page[0]) if page and more_newer else None,
        }
    )
