"""Limits repeating audit events to one per hour: refused attempts and views by platform staff.

The counts are in the memory of each process, so a suppressed event costs neither a query nor a lock. Each process
writes its own event. A count is lost when its process ends or when its key is evicted.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable

from apps.core import clock

MOST_REMEMBERED = 20_000
_HOUR_MS = 3_600_000


class Coalescer:
    """Remembers which keys were written this hour, and how many events were suppressed since."""

    def __init__(self, most: int = MOST_REMEMBERED) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._seen: OrderedDict[Hashable, tuple[int, int]] = OrderedDict()

    def admit(self, key: Hashable) -> int | None:
        """Return the number of events of `key` suppressed since the last one, if the next is to be written, else None."""
        hour = clock.now_ms() // _HOUR_MS
        with self._lock:
            written_in, suppressed = self._seen.pop(key, (-1, 0))
            if written_in == hour:
                self._seen[key] = (hour, suppressed + 1)
                return None
            self._seen[key] = (hour, 0)
            while len(self._seen) > self._most:
                self._seen.popitem(last=False)
            return suppressed

    def forget(self, key: Hashable) -> None:
        """Make the next event of `key` be written, because writing this one failed."""
        with self._lock:
            self._seen.pop(key, None)


coalescer = Coalescer()
