"""A local HTTP port as ingress: the body of a POST is a record, and the answer states what became of it.

It is for programs on this host, not for browsers: a request that a page could have caused (`Origin`, `Sec-Fetch-Site`, a `Host`
that is no loopback name) is refused. A body is one record, as it is: no content coding is undone, nothing is split.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

from apps.runtime.agent.client import is_loopback
from apps.runtime.agent.exchange import TimedSocket, TooMuch
from apps.runtime.agent.pipeline.files import MAX_RECORD_BYTES

MAX_CONNECTIONS = 64
IDLE_SECONDS = 75.0
REQUEST_SECONDS = 15.0
_MAX_HEAD_BYTES = 64 * 1024
_BATCHES = ("application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines")

Take = Callable[[bytes], tuple[int, bytes]]
Refuse = Callable[[str, bytes], None]


def listen(ingress: Mapping[str, Any], take: Take, refuse: Refuse) -> ThreadingHTTPServer:
    """A server, bound and not yet serving, that answers each record with the (status, body) that `take` gives.

    What is refused before it is a record is passed to `refuse`, with a code and what is there of it. Requests to another path, or
    by another method, were not meant for this port and are not counted.
    """
    path = str(ingress.get("path", "/"))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        server_version, sys_version = "byteor-agent", ""

        def setup(self) -> None:
            self.connection = self.request
            self._unread = False
            self._timed = TimedSocket(self.request, time.monotonic() + IDLE_SECONDS, _MAX_HEAD_BYTES)
            self.rfile = self._timed.makefile("rb")
            self.wfile = cast(Any, _Writer(self._timed))

        def finish(self) -> None:
            """Take what is still on its way for a moment: closed at once, the sender might never see the answer."""
            with contextlib.suppress(OSError, TooMuch):
                if self._unread:
                    self.request.shutdown(socket.SHUT_WR)
                    self._timed.deadline, self._timed.budget = time.monotonic() + 1, 2 * MAX_RECORD_BYTES
                    while self._timed.receive_into(bytearray(65536)):
                        pass
            self.rfile.close()
            self.wfile.close()

        def handle_one_request(self) -> None:
            """The next request: its first byte may take a while, all of it REQUEST_SECONDS from then."""
            self._timed.deadline = time.monotonic() + IDLE_SECONDS
            self._timed.budget = _MAX_HEAD_BYTES
            try:
                if not self.rfile.peek(1):  # type: ignore[attr-defined]
                    self.close_connection = True
                    return
            except OSError:
                self.close_connection = True
                return
            self._timed.deadline = time.monotonic() + REQUEST_SECONDS
            super().handle_one_request()

        def do_POST(self) -> None:
            if self.path.partition("?")[0] != path:
                self._refuse(404, "not_found", "There is nothing at this path.")
                return
            problem = self._problem()
            if problem is not None:
                refuse(problem[1], b"")
                self._refuse(*problem)
                return
            length = int(self.headers["Content-Length"])
            self._timed.budget = length + _MAX_HEAD_BYTES
            self._timed.deadline = time.monotonic() + REQUEST_SECONDS
            try:
                record = self.rfile.read(length)
            except TimeoutError:
                refuse("body_too_slow", b"")
                self._timed.deadline = time.monotonic() + REQUEST_SECONDS
                self._refuse(408, "body_too_slow", f"A body arrives within {REQUEST_SECONDS:.0f} s.")
                return
            if len(record) < length:  # its sender went away
                refuse("body_incomplete", record)
                self.close_connection = True
                return
            self._timed.deadline = float("inf")
            status, body = take(record)
            self._timed.deadline = time.monotonic() + REQUEST_SECONDS
            self._answer(status, body)

        def _problem(self) -> tuple[int, str, str] | None:
            """(status, code, detail) of what is wrong with the head of a request, None when nothing is."""
            headers = self.headers
            hosts = headers.get_all("Host") or []
            if len(hosts) != 1 or not _is_here(hosts[0]):
                return 403, "not_this_host", "The Host header names no loopback address."
            if headers.get("Origin") is not None or headers.get("Sec-Fetch-Site") is not None:
                return 403, "from_a_browser", "Pages of a browser may not send records."
            lengths = headers.get_all("Content-Length") or []
            if headers.get("Transfer-Encoding") is not None or len(lengths) != 1:
                return 411, "length_required", "A request says its length with one Content-Length, and is not chunked."
            if not (lengths[0].isascii() and lengths[0].isdigit()):
                return 400, "bad_length", "Content-Length is a number."
            if len(lengths[0]) > 9 or int(lengths[0]) > MAX_RECORD_BYTES:
                return 413, "body_too_large", f"A record has at most {MAX_RECORD_BYTES} bytes."
            if lengths[0].strip("0") == "":
                return 422, "empty_record", "A record has at least one byte."
            if any(
                coding.strip().lower() not in ("", "identity") for coding in headers.get_all("Content-Encoding") or []
            ):
                return 415, "content_coding", "A body is sent as it is: no content coding is undone here."
            kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
            if kind in _BATCHES or kind.startswith("multipart/"):
                return 415, "one_record_a_request", "Send one record a request: a body is not split."
            return None

        def _refuse(self, status: int, code: str, detail: str) -> None:
            """Refuse what was not read, and with it what may come behind it."""
            self.close_connection = self._unread = True
            self._answer(status, b'{"code": "%s", "detail": "%s"}' % (code.encode(), detail.encode()))

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            if status == 503:
                self.send_header("Retry-After", "1")
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Records are not log lines."""

    class Server(ThreadingHTTPServer):
        request_queue_size = 256
        address_family = socket.AF_INET6 if ":" in str(ingress.get("host", "")) else socket.AF_INET

        def __init__(self, *args: Any) -> None:
            self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
            super().__init__(*args)

        def server_bind(self) -> None:
            """Bind, without the look-up of a name that `HTTPServer` does."""
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind(self.server_address)
            self.server_address = self.socket.getsockname()
            self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

        def process_request(self, request: Any, client_address: Any) -> None:
            """Give it a thread while there is one free; else its sender keeps the record."""
            if not self._free.acquire(blocking=False):
                request.settimeout(1)
                request.sendall(_BUSY)
                self.shutdown_request(request)
                return
            try:
                super().process_request(request, client_address)
            except BaseException:  # no thread began, so none gives its place back
                self._free.release()
                raise

        def process_request_thread(self, request: Any, client_address: Any) -> None:
            try:
                super().process_request_thread(request, client_address)
            finally:
                self._free.release()

        def handle_error(self, request: object, client_address: object) -> None:
            """A sender that hangs up is not the pipeline's trouble."""

    # only loopback: what else listens on this host is not the control plane's to decide
    return Server((str(ingress.get("host", "127.0.0.1")), int(ingress["port"])), Handler)


_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: 16\r\nRetry-After: 1\r\n"
    b'Connection: close\r\n\r\n{"code": "busy"}'
)


class _Writer:
    """What an answer is written to."""

    def __init__(self, sock: TimedSocket) -> None:
        self._sock = sock
        self.closed = False

    def write(self, data: bytes) -> int:
        self._sock.sendall(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is held."""

    def close(self) -> None:
        self.closed = True


def _is_here(host: str) -> bool:
    """Does a Host header name this host's loopback: localhost or an address, with or without a port?"""
    name = host.strip()
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    elif name.count(":") == 1:
        name = name.partition(":")[0]
    return is_loopback(name.lower())
