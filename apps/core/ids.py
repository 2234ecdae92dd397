"""Identifiers: UUIDv7, generated in Python (RFC 9562 §5.7)."""

import datetime as dt
import uuid

from uuid_utils.compat import uuid7


def new_id() -> uuid.UUID:
    """Return a new UUIDv7. Ids of one process sort in the order of their creation."""
    return uuid7()


def first_id_at(moment: dt.datetime) -> uuid.UUID:
    """Return the lowest id that can be created at `moment`: every earlier id is lower, every later id is not."""
    milliseconds = int(moment.timestamp() * 1000)
    return uuid.UUID(int=min(max(milliseconds, 0), 2**48 - 1) << 80)


def parse_id(text: object) -> uuid.UUID | None:
    """Parse a UUID in its canonical hyphenated form. Returns None for anything else."""
    if isinstance(text, uuid.UUID):
        return text
    if not isinstance(text, str) or len(text) != 36:
        return None
    try:
        value = uuid.UUID(text)
    except ValueError:
        return None
    return value if str(value) == text.lower() else None
