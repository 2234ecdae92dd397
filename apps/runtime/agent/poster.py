"""POST to exactly one URL: no redirect is followed, no proxy variable read, no more of the answer read than 64 KiB."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import time
from urllib.parse import urlsplit

MAX_ANSWER_BYTES = 64 * 1024


class Poster:
    """Sends records, one at a time, over one connection per origin that is kept open. `stop()` may come from any thread."""

    def __init__(self) -> None:
        self._kept: dict[str, http.client.HTTPConnection] = {}
        self._used: http.client.HTTPConnection | None = None
        self._stopped = False

    def post(self, url: str, body: bytes, seconds: float) -> int:
        """The status of the answer. OSError or HTTPException when none came within about `seconds`."""
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        deadline = time.monotonic() + seconds
        kept = self._kept.pop(origin, None)
        while True:
            if self._stopped:
                raise ConnectionAbortedError("stopped")
            connection = kept or _connection(parts.scheme, parts.hostname or "", parts.port)
            self._used = connection
            try:
                status, reusable = _exchanged(connection, target, body, deadline)
            except (OSError, http.client.HTTPException):
                connection.close()
                if kept is None:
                    raise
                kept = None  # the receiver had closed it meanwhile: once more, with a fresh one
                continue
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
        if used is not None and used.sock is not None:
            with contextlib.suppress(OSError):
                used.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close what is kept open."""
        for connection in self._kept.values():
            connection.close()
        self._kept.clear()


def _connection(scheme: str, host: str, port: int | None) -> http.client.HTTPConnection:
    if scheme == "https":
        return http.client.HTTPSConnection(host, port, context=ssl.create_default_context())
    return http.client.HTTPConnection(host, port)


def _exchanged(connection: http.client.HTTPConnection, target: str, body: bytes, deadline: float) -> tuple[int, bool]:
    """(status, may the connection be used again)."""
    connection.timeout = max(0.1, deadline - time.monotonic())
    if connection.sock is not None:
        connection.sock.settimeout(connection.timeout)
    connection.request("POST", target, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    left = MAX_ANSWER_BYTES
    while left > 0 and (patience := deadline - time.monotonic()) > 0:
        if connection.sock is not None:
            connection.sock.settimeout(patience)
        piece = response.read1(left)
        if not piece:
            reusable = not response.will_close
            response.close()  # or the connection takes no other request
            return response.status, reusable
        left -= len(piece)
    return response.status, False
