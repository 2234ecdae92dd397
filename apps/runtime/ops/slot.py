"""A record on its way through the stages."""

from __future__ import annotations

from collections.abc import Callable

from apps.runtime.ops.records import Value, parse_record, write_record


class Slot:
    """A record on the ring.

    It is read as JSON when the first op asks, and written again only if one changed it.
    """

    __slots__ = ("_changed", "_data", "_value")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._value: dict[str, Value] | None = None
        self._changed = False

    def value(self) -> dict[str, Value]:
        """The record as an object. Raises Refused when it is none."""
        if self._value is None:
            self._value = parse_record(self._data)
        return self._value

    def rewrite(self, edit: Callable[[dict[str, Value]], None]) -> None:
        """Have `edit` change the record in place. Raises Refused when the record is no JSON object."""
        edit(self.value())
        self._changed = True

    def copy(self) -> Slot:
        """Another record with the same bytes."""
        return Slot(self.data())

    def data(self) -> bytes:
        """The record's bytes as it now stands; the very bytes that came in when no op rewrote it."""
        if self._changed:
            self._data = write_record(self.value())
            self._changed = False
        return self._data
