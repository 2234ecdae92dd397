"""Keyset pagination by UUIDv7 id, newest first. The cost of a page does not grow with the number of rows."""

from __future__ import annotations

import base64
import datetime as dt
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from django.db import models
from rest_framework.request import Request
from rest_framework.response import Response

from apps.api.parameters import Filter, bad_parameter, included_members, parse_moment
from apps.core.ids import first_id_at

M = TypeVar("M", bound=models.Model)

DEFAULT_LIMIT = 50
MAX_LIMIT = 200
MAX_LONG_LIMIT = 20
"""Maximum rows of a page with members of up to a megabyte each."""
MAX_FILTER_CHARACTERS = 200
ID_SLACK = dt.timedelta(minutes=5)
"""Maximum difference between the time in a row's UUIDv7 id and its `created_at`. A filter by time uses it to bound the ids too, and
so does not scan newer rows."""


def _encode(direction: str, row_id: uuid.UUID) -> str:
    return base64.urlsafe_b64encode(direction.encode() + row_id.bytes).decode().rstrip("=")


def _decode(cursor: str) -> tuple[str, uuid.UUID]:
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        direction, row_id = raw[:1].decode("ascii"), uuid.UUID(bytes=raw[1:])
    except (ValueError, UnicodeDecodeError):
        raise bad_parameter("cursor", "This cursor was not issued by this list.", "bad_cursor") from None
    if direction not in ("n", "p"):
        raise bad_parameter("cursor", "This cursor was not issued by this list.", "bad_cursor")
    return direction, row_id


def keyset_page(
    request: Request,
    rows: models.QuerySet[M],
    render: Callable[[M], Mapping[str, object]],
    *,
    filters: Mapping[str, Filter] | None = None,
    prepare: Callable[[Sequence[M]], None] | None = None,
    long_members: Sequence[str] = (),
) -> Response:
    """Respond with one page of `rows` as `{"results", "next", "previous"}`.

    `filters` maps query parameters to filters; `limit`, `cursor`, `created_after` and `created_before` are always
    accepted. `long_members` are fields that are read only when `?include=` names them (`included_members`); such a page
    has at most 20 rows. `prepare` is called with the page's rows before they are rendered, to fetch related data in one
    query. Raises BadRequest for an unknown or repeated parameter, and for an invalid limit, cursor or value.
    """
    known = filters or {}
    parameters = request.query_params
    always = {"limit", "cursor", "created_after", "created_before", *(["include"] if long_members else [])}
    for name in parameters:
        if name not in known and name not in always:
            raise bad_parameter(name, f"'{name[:64]}' is not a filter of this list.", "unknown_filter")
        if len(parameters.getlist(name)) > 1:
            raise bad_parameter(name, f"'{name[:64]}' is repeated.", "bad_filter")
        if len(parameters[name]) > MAX_FILTER_CHARACTERS or "\x00" in parameters[name]:
            raise bad_parameter(name, f"At most {MAX_FILTER_CHARACTERS} characters, without NUL.", "bad_filter")
    wanted = included_members(request, *long_members) if long_members else frozenset()
    most, usual = (MAX_LONG_LIMIT, MAX_LONG_LIMIT) if wanted else (MAX_LIMIT, DEFAULT_LIMIT)
    if left_out := set(long_members) - wanted:
        rows = rows.defer(*left_out)
    limit_text = parameters.get("limit", str(usual))
    if not (limit_text.isascii() and limit_text.isdigit() and len(limit_text) <= 4) or not 1 <= int(limit_text) <= most:
        raise bad_parameter("limit", f"A whole number from 1 to {most} is expected.", "bad_limit")
    limit = int(limit_text)
    if "created_after" in parameters:
        moment = parse_moment("created_after", parameters["created_after"])
        rows = rows.filter(created_at__gt=moment, pk__gte=first_id_at(moment - ID_SLACK))
    if "created_before" in parameters:
        moment = parse_moment("created_before", parameters["created_before"])
        rows = rows.filter(created_at__lt=moment, pk__lte=first_id_at(moment + ID_SLACK))
    for name, each in known.items():
        if name in parameters:
            rows = each.apply(name, rows, parameters[name])

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
