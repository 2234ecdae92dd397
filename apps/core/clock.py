"""The clock that all code reads."""

import datetime as dt
from typing import overload

from django.utils import timezone


def now() -> dt.datetime:
    """Return the current time, aware, in UTC."""
    return timezone.now()


def now_ms() -> int:
    """Return the current time in whole Unix milliseconds."""
    return to_ms(now())


def to_ms(moment: dt.datetime) -> int:
    """Convert `moment` to whole Unix milliseconds, rounded down."""
    return int(moment.timestamp() * 1000)


@overload
def rfc3339(moment: dt.datetime) -> str: ...
@overload
def rfc3339(moment: dt.datetime | None) -> str | None: ...
def rfc3339(moment: dt.datetime | None) -> str | None:
    """Format as RFC 3339 in UTC with milliseconds and `Z`. None stays None."""
    if moment is None:
        return None
    return moment.astimezone(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
