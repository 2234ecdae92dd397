"""The one clock. Everything that asks what time it is asks here."""

import datetime as dt

from django.utils import timezone


def now() -> dt.datetime:
    """The present moment, aware, UTC."""
    return timezone.now()


def now_ms() -> int:
    """The present moment in whole Unix milliseconds."""
    return to_ms(now())


def to_ms(moment: dt.datetime) -> int:
    """`moment` in whole Unix milliseconds, rounded down."""
    return int(moment.timestamp() * 1000)


def from_ms(milliseconds: int) -> dt.datetime:
    """The aware UTC moment of a Unix time in milliseconds."""
    return dt.datetime.fromtimestamp(milliseconds / 1000, tz=dt.UTC)


def rfc3339(moment: dt.datetime | None) -> str | None:
    """RFC 3339 in UTC with milliseconds and `Z`; None stays None."""
    if moment is None:
        return None
    return moment.astimezone(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
