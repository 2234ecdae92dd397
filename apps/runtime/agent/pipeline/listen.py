"""A local HTTP port as ingress: the body of a POST is a record, and the answer says what became of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from apps.runtime.agent.pipeline.files import MAX_RECORD_BYTES

Take = Callable[[bytes], tuple[int, bytes]]


def listen(ingress: Mapping[str, Any], take: Take) -> ThreadingHTTPServer:
    """A server, bound and not yet serving, that answers each record with the (status, body) that `take` gives."""
    path = str(ingress.get("path", "/"))

    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_POST(self) -> None:
            if self.path != path:
                self._answer(404, b'{"code": "not_found"}')
                return
            length = self.headers.get("Content-Length", "")
            if not (length.isascii() and length.isdigit()):
                self._answer(411, b'{"code": "length_required"}')
            elif len(length) > 9 or int(length) > MAX_RECORD_BYTES:
                self._answer(413, b'{"code": "body_too_large"}')
            else:
                record = self.rfile.read(int(length))
                if len(record) == int(length):  # else its sender went away
                    self._answer(*take(record))

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            if status == 503:
                self.send_header("Retry-After", "1")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Records are not log lines."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """A sender that hangs up is not the pipeline's trouble."""

    # only loopback: what else listens on this host is not the control plane's to say
    return Server((str(ingress.get("host", "127.0.0.1")), int(ingress["port"])), Handler)
