"""JSON documents of answers: a `TypedDict` describes one, and `document` makes it of a row."""

from __future__ import annotations

import datetime as dt
import functools
import uuid
from collections.abc import Callable, Collection
from typing import Any, TypeVar, get_type_hints

from apps.core.clock import rfc3339

D = TypeVar("D")

_AS_TEXT: dict[type, Callable[[Any], object]] = {uuid.UUID: str, dt.datetime: rfc3339}


@functools.cache
def _members(kind: Any) -> tuple[str, ...]:
    return tuple(get_type_hints(kind))


def document(kind: type[D], row: object, /, *, without: Collection[str] = (), **members: object) -> D:
    """Return the document `kind` of `row`: each member is the row's attribute of the same name.

    `members` gives those that are not; `without` names those that are left out and not read. Ids are written as text, times
    as RFC 3339.
    """
    made = {}
    for name in _members(kind):  # type: ignore[arg-type]
        if name not in without:
            value = members[name] if name in members else getattr(row, name)
            convert = _AS_TEXT.get(type(value))
            made[name] = value if convert is None else convert(value)
    return made  # type: ignore[return-value]
