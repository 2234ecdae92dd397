"""POST to exactly one URL: no redirect is followed, no proxy variable read, no more of the answer read than 64 KiB."""

from __future__ import annotations

import http.client
import time
from urllib.parse import urlsplit

from apps.runtime.agent.exchange import Connection, UnsendableRequest

MAX_ANSWER_BYTES = 64 * 1024
_MAX_EXCHANGE_BYTES = 512 * 1024


class Poster:
    """Sends records, one at a time, over one connection per origin that is kept open. `stop()` may come from any thread."""

    def __init__(self) -> None:
        self._kept: dict[str, Connection] = {}
        self._used: Connection | None = None
        self._stopped = False

    def post(self, url: str, body: bytes, seconds: float) -> int:
        """The status of the answer. OSError or HTTPException when none came: the whole exchange ends within `seconds`."""
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        deadline = time.monotonic() + seconds
        kept = self._kept.pop(origin, None)
        while True:
            connection = kept or Connection(parts.scheme, parts.hostname or "", parts.port)
            self._used = connection
            try:
                if self._stopped:
                    raise ConnectionAbortedError("stopped")
                status, reusable = _exchanged(connection, target, body, deadline)
            except (ConnectionError, http.client.RemoteDisconnected):
                connection.close()
                if kept is None or self._stopped or time.monotonic() >= deadline:
                    raise
                kept = None  # the receiver had closed it meanwhile, and answered nothing: once more, with a fresh one
                continue
            except BaseException:
                connection.close()
                raise
            finally:
                self._used = None
            if reusable:
                self._kept[origin] = connection
            else:
                connection.close()
            return status

    def stop(self) -> None:
        """Interrupt what is under way; nothing is sent after."""
        self._stopped = True
        used = self._used
        if used is not None:
            used.abort()

    def close(self) -> None:
        """Close what is kept open."""
        for connection in self._kept.values():
            connection.close()
        self._kept.clear()


def _exchanged(connection: Connection, target: str, body: bytes, deadline: float) -> tuple[int, bool]:
    """(status, may the connection be used again). What follows the head is read as far as time and the cap allow."""
    connection.begin(deadline, _MAX_EXCHANGE_BYTES)
    try:
        response = connection.ask("POST", target, body, {"Content-Type": "application/json"})
    except UnsendableRequest as error:
        raise OSError(str(error)) from error
    left = MAX_ANSWER_BYTES
    try:
        while left > 0:
            piece = response.read1(left)
            if not piece:
                reusable = not response.will_close
                response.close()  # or the connection takes no other request
                return response.status, reusable
            left -= len(piece)
    except (OSError, http.client.HTTPException):
        pass  # its status has arrived, which is all that counts
    response.close()
    return response.status, False
