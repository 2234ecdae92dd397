"""Identifiers: UUIDv7, made in Python (RFC 9562 §5.7)."""

import datetime as dt
import uuid

from uuid_utils.compat import uuid7


def new_id() -> uuid.UUID:
    """A fresh UUIDv7. Ids made later in one process sort after those made before."""
    return uuid7()


def first_id_at(moment: dt.datetime) -> uuid.UUID:
    """The lowest id that can be made at `moment`: every id made before is lower, every id made later is not."""
    milliseconds = int(moment.timestamp() * 1000)
    return uuid.UUID(int=min(max(milliseconds, 0), 2**48 - 1) << 80)


def parse_id(text: object) -> uuid.UUID | None:
    """The UUID that `text` spells in its canonical hyphenated form, or None for anything else."""
    if isinstance(text, uuid.UUID):
        return text
    if not isinstance(text, str) or len(text) != 36:
        return None
    try:
        value = uuid.UUID(text)
    except ValueError:
        return None
    return value if str(value) == text.lower() else None
