"""Reports that wait on disk until the control plane takes them, in the order they were made."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from apps.runtime.agent.client import Refused, Unreachable
from apps.runtime.agent.state import State
from apps.runtime.faults import fault_point

MAX_REPORTS = 1000
_FILE = "outbox.json"


class Outbox:
    """`send(deployment id, body)` delivers one report; it raises Unreachable (try later) or Refused (never again, but for 401)."""

    def __init__(self, state: State, send: Callable[[str, dict[str, Any]], None], say: Callable[[str], None]) -> None:
        self._state, self._send, self._say = state, send, say
        self._turn = threading.RLock()

    def put(self, to: str, body: dict[str, Any]) -> None:
        """Queue a report on disk, then try to send what is queued."""
        with self._turn:
            kept = (self._state.read(_FILE) or [])[-MAX_REPORTS:]
            self._state.write(_FILE, [*kept, {"to": to, "body": body}])
            fault_point("agent.report.queued")
        try:
            self.flush()
        except (Unreachable, Refused) as error:
            self._say(f"a report waits: {error}")

    def flush(self) -> None:
        """Send the queued reports, oldest first. One that is not wanted any more (4xx but 401) is dropped."""
        with self._turn:
            waiting = self._state.read(_FILE) or []
            while waiting:
                item = waiting[0]
                try:
                    self._send(item["to"], item["body"])
                except Refused as error:
                    if error.status == 401:
                        raise
                    self._say(f"the report '{item['body']['status']}' was not taken: {error}")
                fault_point("agent.report.sent")
                waiting = waiting[1:]
                self._state.write(_FILE, waiting)
