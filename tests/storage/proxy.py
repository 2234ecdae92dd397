"""An S3 server of the suite, and a proxy in front of it that fails on demand."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.flows.world import free_port, until
from tests.services import Missing

BUCKET = "byteor-test"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test-secret",  # of nothing
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


class _Handler(BaseHTTPRequestHandler):
    """Passes a request on, or fails as the proxy's `fault` names."""

    protocol_version = "HTTP/1.1"
    proxy: FaultProxy

    def _serve(self) -> None:
        fault = self.proxy.fault
        self.close_connection = bool(fault)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if fault == "hang":
            self.proxy.released.wait(120)
            return
        if fault == "refuse":
            return  # a connection from before
        if fault == "slow":
            time.sleep(3)
        if fault in ("403", "503"):
            code = {"403": "AccessDenied", "503": "SlowDown"}[fault]
            self._answer(int(fault), f"<Error><Code>{code}</Code></Error>".encode(), {})
            return
        upstream = http.client.HTTPConnection("127.0.0.1", self.proxy.upstream, timeout=60)
        try:
            headers = {k: v for k, v in self.headers.items() if k.lower() != "expect"}
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            data = answer.read()
        finally:
            upstream.close()
        found = dict(answer.getheaders())
        if self.command == "GET" and "list-type" not in self.path and answer.status == 200:
            if fault == "lose":
                self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>", {})
                return
            if fault == "flip" and data:
                data = bytes([data[0] ^ 1]) + data[1:]
        self._answer(answer.status, data, found)

    def _answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding", "date", "server"):
                self.send_header(name, value)
        length = headers.get("Content-Length", str(len(data))) if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def log_message(self, format: str, *args: object) -> None:
        """Not logged."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up."""


class FaultProxy:
    """`fault`: "" passes everything on; slow, hang, refuse, 403, 503, lose, flip."""

    def __init__(self, upstream: int) -> None:
        self.upstream, self.port = upstream, free_port()
        self.fault = ""
        self.released = threading.Event()
        self._server: _Server | None = None
        self.listen()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def listen(self) -> None:
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = _Server(("127.0.0.1", self.port), handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    @contextlib.contextmanager
    def broken(self, fault: str) -> Iterator[None]:
        """The store is like this inside the block."""
        self.released.clear()
        self.fault = fault
        if fault == "refuse":
            self.close()
        try:
            yield
        finally:
            self.fault = ""
            self.released.set()
            if fault == "refuse":
                self.listen()


@contextlib.contextmanager
def s3_behind_a_proxy() -> Iterator[FaultProxy]:
    """An S3 server with an empty bucket, and the proxy to it. Raises Missing."""
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask_cors") is None:
        raise Missing("s3: no S3 server is installed (moto with flask and flask-cors)")
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **CREDENTIALS},
    )
    proxy: FaultProxy | None = None
    try:

        def made() -> bool:
            assert server.poll() is None, "the S3 server did not start"
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            try:
                connection.request("PUT", f"/{BUCKET}", headers={"Host": "127.0.0.1"})
                return connection.getresponse().status == 200
            except OSError:
                return False
            finally:
                connection.close()

        until(made, 60)
        proxy = FaultProxy(port)
        yield proxy
    finally:
        if proxy is not None:
            proxy.released.set()
            proxy.close()
        server.terminate()
        server.wait(timeout=20)
