"""Reports that wait until the control plane takes them, in the order they were made: on disk, and within a cap."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from apps.runtime.agent.client import Refused, Unreachable
from apps.runtime.agent.enroll import as_uuid
from apps.runtime.agent.state import State
from apps.runtime.faults import fault_point

MAX_REPORTS = 200
MAX_UNPROVEN = 5
QUIET_SECONDS = 5.0
_FILE = "outbox.json"


class Outbox:
    """`send(deployment id, body)` delivers one report; it raises Unreachable (try later) or Refused (never again, but for 401).

    A report to a deployment that only an unsigned answer named is `unproven`: at most five of those wait, so that they make
    no other report go. Beyond the cap, a report goes that a later one of the same deployment has overtaken, oldest first; if
    there is none, the oldest. A full disk does not stop reports: what can't be kept is still sent, as long as
    this process lives.
    """

    def __init__(self, state: State, send: Callable[[str, dict[str, Any]], None], log: Callable[[str], None]) -> None:
        self._state, self._send, self._log = state, send, log
        self._turn = threading.RLock()
        self._waiting: list[dict[str, Any]] = state.recall(_FILE, _reports) or []
        self._unkept = False
        self._quiet_until = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, to: str, body: dict[str, Any], *, unproven: bool = False) -> None:
        """Queue a report on disk, then try to send what is queued.

        When there was no answer a moment ago, it just waits: a switch is not held up once more for each of its reports.
        """
        with self._turn:
            self._waiting.append({"to": to, "body": body, "unproven": unproven})
            doubtful = [number for number, item in enumerate(self._waiting) if item.get("unproven")]
            if len(doubtful) > MAX_UNPROVEN:
                del self._waiting[doubtful[0]]
            while len(self._waiting) > MAX_REPORTS:
                self._drop_one()
            self._keep()
            fault_point("agent.report.queued")
        if time.monotonic() < self._quiet_until:
            return
        try:
            self.flush()
        except (Unreachable, Refused) as error:
            self._log(f"a report waits: {error}")

    def _drop_one(self) -> None:
        for number, item in enumerate(self._waiting):
            if any(later["to"] == item["to"] for later in self._waiting[number + 1 :]):
                del self._waiting[number]
                return
        del self._waiting[0]

    def _keep(self) -> None:
        try:
            self._state.write(_FILE, self._waiting)
        except OSError as error:
            if not self._unkept:
                self._log(f"reports can't be kept on disk: {error.strerror}")
            self._unkept = True
        else:
            self._unkept = False

    def flush(self) -> None:
        """Send the queued reports, oldest first. One that is not wanted any more (4xx but 401) is dropped."""
        with self._turn:
            if self._unkept:
                self._keep()
            while self._waiting:
                item = self._waiting[0]
                try:
                    self._send(item["to"], item["body"])
                except Unreachable:
                    self._quiet_until = time.monotonic() + QUIET_SECONDS
                    raise
                except Refused as error:
                    if error.status == 401:
                        raise
                    self._log(f"the report '{item['body']['status']}' was not taken: {error}")
                fault_point("agent.report.sent")
                del self._waiting[0]
                self._keep()


def _reports(value: Any) -> list[dict[str, Any]]:
    """The reports in a file. ValueError, TypeError or KeyError when it holds anything else."""
    for item in value:
        as_uuid(item["to"])
        if not isinstance(item["body"]["status"], str):
            raise ValueError("a report has a status")
    return list(value)
