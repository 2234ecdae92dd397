"""`manage.py run_web`, the one way to start the web server."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.world import ROOT, until
from tests.web import Server

pytestmark = pytest.mark.alone


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    started = Server(tmp_path)
    yield started
    started.close()


def _free(server: Server) -> bool:
    host, port = server.url.removeprefix("http://").split(":")
    try:
        socket.create_server((host, int(port))).close()
    except OSError:
        return False
    return True


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_taken_port_is_one_line_and_exit_2(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        environment = {**os.environ, "BYTEOR_CLOUD_DATA_DIR": str(tmp_path), "BYTEOR_CLOUD_API_BIND_ADDR": address}
        command = [sys.executable, "manage.py", "run_web"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [f"byteor: the web server can't listen on {address}: Address already in use"]


def test_serves_its_static_files_ends_with_its_parent_and_leaves_the_port_free(server: Server) -> None:
    with urllib.request.urlopen(f"{server.url}/static/admin/css/base.css", timeout=10) as answer:
        assert answer.status == 200
    worker = server.worker
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    until(lambda: not _alive(worker), 10)
    # the last thread of a process that was killed gives the socket back
    until(lambda: _free(server), 10)


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    """What a test opened is closed also when it fails."""
    with contextlib.ExitStack() as opened:
        yield opened


def test_sigterm_ends_it_within_ten_seconds_whatever_its_clients_do(
    server: Server, stack: contextlib.ExitStack
) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    clients = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(4)]
    slow = b"POST /api/v1/me/tokens HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 500\r\n\r\nx"
    unread = b"GET /install/byteor-agent.pyz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 60
    for client, given in zip(clients, (b"", b"GET / HT", slow, unread), strict=True):
        client.sendall(given)
    time.sleep(1)
    worker, began = server.worker, time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(25)
    # without its own limit it is thirty or more
    assert time.monotonic() - began < 10
    assert not _alive(worker)


@pytest.mark.parametrize(("length", "status"), [(40_000, b"200"), (100_000, b"431")])
def test_a_long_head_is_not_held_while_it_comes(server: Server, length: int, status: bytes) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nX-Long: " + b"x" * length)
        if status == b"200":
            client.sendall(b"\r\n\r\n")
        assert client.recv(12).split()[1] == status
