"""A body of 64 MiB through the front, against granian in WSGI mode with the same application, which keeps no body before it is
read, and against the lower bound of keeping it in a file: a bare ASGI application (`bench.bodies_app.spooled`)."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.measure import report
from tests.flows.world import free_port, until

SIZE = 64 * 1024 * 1024
ROUNDS = 15
ROOT = Path(__file__).resolve().parents[1]


def _start(interface: str, target: str, port: int, directory: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "granian", "--interface", interface, "--port", str(port), "--no-ws", "--http", "1"]
    if interface == "wsgi":
        command += ["--blocking-threads", "8"]
    environment = {**os.environ, "BENCH_BODIES": directory, "BYTEOR_CLOUD_DATA_DIR": directory}
    command += ["--log-level", "critical", f"bench.bodies_app:{target}"]
    return subprocess.Popen(command, cwd=ROOT, env=environment)


def _upload(port: int, body: bytes, path: str = "/read") -> float:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    began = time.perf_counter()
    connection.request("POST", path, body)
    answer = connection.getresponse().read()
    spent = time.perf_counter() - began
    connection.close()
    if int(answer) != len(body):
        raise SystemExit(f"{len(body)} bytes were sent, {answer!r} arrived")
    return spent


def _answers(port: int) -> bool:
    try:
        return _upload(port, b"x") > 0
    except OSError:
        return False


def main() -> None:
    """Measure and print."""
    body = os.urandom(1024 * 1024) * (SIZE // (1024 * 1024))
    with tempfile.TemporaryDirectory(prefix="byteor-bench-") as directory:
        ports = free_port(), free_port(), free_port()
        servers = [
            _start("asgi", "asgi", ports[0], directory),
            _start("wsgi", "wsgi", ports[1], directory),
            _start("asgi", "spooled", ports[2], directory),
        ]
        try:
            for port in ports:
                until(lambda port=port: _answers(port), 60)  # type: ignore[misc]
            rounds = {
                path: [[_upload(port, body, path) for port in ports] for _ in range(ROUNDS + 2)][2:]
                for path in ("/read", "/keep")
            }
        finally:
            for server in servers:
                server.terminate()
                server.wait()
    report(
        "64 MiB read, the front / granian WSGI", [(ours, wsgi) for ours, wsgi, _ in rounds["/read"]], wanted="<= 1.1"
    )
    report("64 MiB read, the front / a bare spool", [(ours, bare) for ours, _, bare in rounds["/read"]])
    report("64 MiB read, hashed and written, the front / granian WSGI", [(a, b) for a, b, _ in rounds["/keep"]])


if __name__ == "__main__":
    main()
