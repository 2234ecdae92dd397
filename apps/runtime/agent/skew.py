"""Is this host's clock wrong? For reports only: no decision depends on it."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime

WORTH_REPORTING_SECONDS = 60.0


class ServerClock:
    """How far this host's clock is from the control plane's, by the Date header (RFC 9110 §6.6.1) of its last answer."""

    def __init__(self) -> None:
        self.ahead_seconds: float | None = None

    def note(self, date: str | None) -> None:
        """Take the Date header of an answer that has just arrived."""
        try:
            self.ahead_seconds = time.time() - parsedate_to_datetime(date or "").timestamp()
        except (ValueError, TypeError, OverflowError, IndexError):
            return

    def words(self) -> str:
        """What is wrong with this host's clock; empty when nothing is, or when that is not known."""
        ahead = self.ahead_seconds
        if ahead is None or abs(ahead) < WORTH_REPORTING_SECONDS:
            return ""
        return f"this host's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the control plane's"
