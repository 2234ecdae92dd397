"""Is this host's clock wrong? Asked only to say so: nothing is believed because of it."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime

WORTH_SAYING_SECONDS = 60.0


class ServerClock:
    """How far this host's clock is from the control plane's, by the Date header (RFC 9110 §6.6.1) of its last answer."""

    def __init__(self) -> None:
        self.ahead_seconds: float | None = None

    def note(self, date: str | None) -> None:
        """Take the Date header of an answer that has just arrived."""
        try:
            self.ahead_seconds = time.time() - parsedate_to_datetime(date or "").timestamp()
        except (ValueError, TypeError, OverflowError):
            return

    def words(self) -> str:
        """What is wrong with this host's clock; empty when nothing is, or when nobody knows."""
        ahead = self.ahead_seconds
        if ahead is None or abs(ahead) < WORTH_SAYING_SECONDS:
            return ""
        return f"this host's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the control plane's"
