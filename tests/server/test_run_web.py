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
from tests.processes import is_alive
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


def test_a_taken_port_is_one_line_and_exit_2(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        environment = {**os.environ, "BYTEOR_CLOUD_DATA_DIR": str(tmp_path), "BYTEOR_CLOUD_API_BIND_ADDR": address}
        command = [sys.executable, "manage.py", "run_web"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [f"byteor: the web server can't listen on {address}: Address already in use"]


def test_serves_its_static_files_ends_with_its_parent_and_leaves_the_port_free(server: Server) -> None:
    with urllib.request.urlopen(f"{server.url}/static/admin/css/base.css", timeout=30) as answer:
        assert answer.status == 200
    worker = server.worker
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    until(lambda: not is_alive(worker))
    # the last thread of a process that was killed gives the socket back
    until(lambda: _free(server))


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
    assert not is_alive(worker)


@pytest.mark.parametrize(("length", "status"), [(40_000, b"200"), (100_000, b"431")])
def test_a_long_head_is_not_held_while_it_comes(server: Server, length: int, status: bytes) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as client:
        # the server may answer and close in the middle of a head that is too long
        with contextlib.suppress(ConnectionError):
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nX-Long: " + b"x" * length)
            if status == b"200":
                client.sendall(b"\r\n\r\n")
        assert client.recv(12).split()[1] == status
