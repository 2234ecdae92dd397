"""Clients that send slowly, read slowly, or only hold a connection cost no other client anything.

The suite looks at each kind for a few seconds; with BYTEOR_SLOW_CLIENTS=long also at when the slowest kinds are ended (about a
minute).
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.web import Server

pytestmark = pytest.mark.alone

LONG = os.environ.get("BYTEOR_SLOW_CLIENTS") == "long"
EACH = 40
DRIPPING = 500


class Crowd:
    """Connections to one server, by kind."""

    def __init__(self, server: Server) -> None:
        host, port = server.url.removeprefix("http://").split(":")
        self._address = (host, int(port))
        self.kinds: dict[socket.socket, str] = {}
        self.received: dict[socket.socket, bytes] = {}
        self._stop = threading.Event()

    def join(self, kind: str, count: int, given: bytes) -> list[socket.socket]:
        joined = []
        for _ in range(count):
            one = socket.create_connection(self._address)
            if given:
                one.sendall(given)
            self.kinds[one] = kind
            joined.append(one)
        return joined

    def join_with_all_kinds(self) -> None:
        """`EACH` of every kind of slow client, and `DRIPPING` that send a byte a second."""
        self.join("with a cookie", EACH, head("/admin/login/", "Cookie: csrftoken=x", "Content-Length: 500") + b"c")
        self.join("with a token", EACH, head("/api/v1/orgs", "Authorization: Bearer x", "Content-Length: 500") + b"{")
        self.join("never-ending chunks", EACH, head("/api/v1/orgs", "Transfer-Encoding: chunked") + b"5\r\nhello\r\n")
        self.join("without a head", EACH, b"")
        self.drip(self.join("slow head", EACH, b"GET /healthz HT"))
        self.drip(self.join("a byte a second", DRIPPING, head("/api/v1/orgs", "Content-Length: 500") + b"{"))
        unread = head("/static/admin/js/vendor/jquery/jquery.js", method="GET") * 30
        self.join("unread", EACH, unread)

    def drip(self, dripping: list[socket.socket]) -> None:
        """A byte a second on each of these, from a thread."""

        def run() -> None:
            while not self._stop.wait(1):
                for one in dripping:
                    with contextlib.suppress(OSError):
                        one.send(b"x")

        threading.Thread(target=run, daemon=True).start()

    def ended(self, kind: str, seconds: float) -> list[bytes]:
        """What each of a kind was answered, once all of them were closed; AssertionError when some are still open."""
        left = {one for one, its in self.kinds.items() if its == kind}
        deadline = time.monotonic() + seconds
        while left:
            assert time.monotonic() < deadline, f"{len(left)} {kind} are still open"
            for one in select.select(left, [], [], 0.2)[0]:
                try:
                    piece = one.recv(65536)
                except OSError:
                    piece = b""
                self.received[one] = self.received.get(one, b"") + piece
                if not piece:
                    left.discard(one)
        return [self.received.get(one, b"") for one, its in self.kinds.items() if its == kind]

    def close(self) -> None:
        self._stop.set()
        for one in self.kinds:
            one.close()


class Probe:
    """What an honest client notices of a health check, the sign-in page, and a heartbeat."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._caller, self._path, _ = server.agent()
        self._heartbeat = {"status": "idle", "version": "1", "running": None, "key_set_version": 1}

    def worst(self, seconds: float) -> dict[str, float]:
        """The longest answer of each."""
        return {name: max(taken) for name, taken in self.times(seconds).items()}

    def times(self, seconds: float) -> dict[str, list[float]]:
        """How long each answer took, for about `seconds`."""
        host, port = self._server.url.removeprefix("http://").split(":")
        key = str(self._caller.token)
        beat = json.dumps(self._heartbeat).encode()
        requests = {
            "healthz": (b"GET", b"/healthz", b""),
            "sign-in": (b"GET", b"/admin/login/", b""),
            "heartbeat": (b"POST", f"/api/v1{self._path}/heartbeat".encode(), beat),
        }
        taken: dict[str, list[float]] = {name: [] for name in requests}
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for name, (method, path, body) in requests.items():
                head = b"%s %s HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nAuthorization: Bearer %s\r\n" % (
                    method, path, key.encode() if body else b"none",
                )  # fmt: skip
                if body:
                    head += b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
                began = time.monotonic()
                with socket.create_connection((host, int(port)), timeout=30) as one:
                    one.sendall(head + b"\r\n" + body)
                    answer = one.recv(65536)
                taken[name].append(time.monotonic() - began)
                assert answer.startswith(b"HTTP/1.1 200"), (name, answer[:200])
            time.sleep(0.05)
        return taken


class Probes:
    """The server that has slow clients, and at the same moments one that has none: a busy machine slows both."""

    def __init__(self, server: Server, idle: Server) -> None:
        self._probe, self._idle = Probe(server), Probe(idle)

    def unhurt(self, seconds: float) -> None:
        """A server whose threads slow clients hold answers no other client before it ends the first of them, after ten seconds."""
        with ThreadPoolExecutor(1) as pool:
            undisturbed = pool.submit(self._idle.worst, seconds)
            found = self._probe.worst(seconds)
            idle = undisturbed.result()
        for name, longest in found.items():
            assert longest < max(1.0, 4 * idle[name]), (name, found, idle)


def resident(pid: int) -> int:
    """The process's memory in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def head(path: str, *lines: str, method: str = "POST") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *lines, "", ""]).encode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    started = Server(tmp_path_factory.mktemp("slow"))
    yield started
    started.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server without slow clients."""
    started = Server(tmp_path_factory.mktemp("idle"))
    yield started
    started.close()


@pytest.fixture
def crowd(server: Server) -> Iterator[Crowd]:
    made = Crowd(server)
    yield made
    made.close()


def test_slow_clients_of_all_kinds_at_once_hurt_no_other_client_and_are_ended(
    server: Server, idle: Server, crowd: Crowd
) -> None:
    probes = Probes(server, idle)
    probes.unhurt(2)
    before = resident(server.worker)
    crowd.join_with_all_kinds()
    probes.unhurt(5)
    grown = resident(server.worker) - before
    assert all(answer.startswith(b"HTTP/1.1 411") for answer in crowd.ended("never-ending chunks", 30))
    for kind in ("with a cookie", "with a token"):
        assert all(answer.startswith(b"HTTP/1.1 408") for answer in crowd.ended(kind, 60))
    assert crowd.ended("without a head", 60) == [b""] * EACH
    probes.unhurt(2)
    assert max(grown, resident(server.worker) - before) < 64 * 1024 * 1024
    if LONG:
        assert crowd.ended("slow head", 60) == [b""] * EACH
        assert all(answer.startswith(b"HTTP/1.1 408") for answer in crowd.ended("a byte a second", 60))
        crowd.ended("unread", 60)


def test_more_silent_connections_than_the_server_takes_hurt_no_other_client(
    server: Server, idle: Server, crowd: Crowd
) -> None:
    probes = Probes(server, idle)
    for _ in range(22):
        crowd.join("silent", 400, b"")
        probes.unhurt(0.1)
    probes.unhurt(3)


def test_a_body_in_two_parts_and_one_that_lies_in_a_file_arrive_whole(server: Server, crowd: Crowd) -> None:
    name = "n" * 3_000_000
    body = json.dumps({"name": name}).encode()
    lines = (f"Authorization: Bearer {server.owner.token}", "Content-Type: application/json", "Connection: close")
    (one,) = crowd.join("long", 1, head("/api/v1/orgs", *lines, f"Content-Length: {len(body)}") + body[:100_000])
    time.sleep(0.5)
    one.sendall(body[100_000:])
    (answer,) = crowd.ended("long", 30)
    assert answer.startswith(b"HTTP/1.1 400"), answer
    assert b"too_long" in answer or b"max_length" in answer or b"bad_name" in answer, answer
    assert server.owner.post("/orgs", {"name": "Small"})["name"] == "Small"
