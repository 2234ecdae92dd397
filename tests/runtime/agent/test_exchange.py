"""HTTP towards a peer that is slow, endless or wrong: one deadline, one cap, and our own faults distinguished from its."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from apps.runtime.agent.client import Answer, Client, Refused, Unreachable, Unsendable
from apps.runtime.agent.poster import Poster

pytestmark = pytest.mark.timeout(240)


class Peer:
    """Listens, takes what comes, and sends `first`, then `piece` again and again, `pause` seconds between."""

    def __init__(self, first: bytes, piece: bytes = b"", pause: float = 0.0, family: int = socket.AF_INET) -> None:
        self._first, self._piece, self._pause = first, piece, pause
        self._listening = socket.socket(family)
        self._listening.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        self._listening.listen()
        self.port = self._listening.getsockname()[1]
        self.connections = 0
        self._over = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while not self._over.is_set():
            try:
                one, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._answer, args=(one,), daemon=True).start()

    def _answer(self, one: socket.socket) -> None:
        try:
            while self.request(one) and not self._over.is_set():
                one.sendall(self._first)
                while self._piece and not self._over.wait(self._pause):
                    one.sendall(self._piece)
        except OSError:
            pass
        finally:
            one.close()

    def request(self, one: socket.socket) -> bytes:
        """The next request, whole: head and body may come in pieces. Empty when the client has closed."""
        taken = b""
        while piece := one.recv(65536):
            taken += piece
            head, ended, body = taken.partition(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: *(\d+)", head)
            if ended and len(body) >= (int(length[1]) if length else 0):
                break
        return taken

    def close(self) -> None:
        self._over.set()
        self._listening.close()


@contextmanager
def peer(first: bytes, piece: bytes = b"", pause: float = 0.0, family: int = socket.AF_INET) -> Iterator[Peer]:
    made = Peer(first, piece, pause, family)
    try:
        yield made
    finally:
        made.close()


ENDLESS = [
    pytest.param(b"", b"H", 0.05, id="status line, a byte at a time"),
    pytest.param(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", 0.2, id="header lines"),
    pytest.param(b"HTTP/1.1 200 OK\r\nX: ", b"y", 0.05, id="one header line"),
    pytest.param(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.0, id="continue for ever"),
    pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b"{", 0.05, id="body"),
    pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n{\r\n", 0.05, id="chunks"),
    pytest.param(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", b"x" * 65536, 0.0, id="negative chunk"
    ),
    pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n", 0.0, id="trailers"),
    pytest.param(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536, 0.0, id="body without an end"),
]


@pytest.mark.parametrize(("first", "piece", "pause"), ENDLESS)
def test_an_exchange_with_a_control_plane_ends_at_its_deadline_or_cap(first: bytes, piece: bytes, pause: float) -> None:
    with peer(first, piece, pause) as other:
        begun = time.monotonic()
        with pytest.raises((Unreachable, Refused)):
            Client(f"http://127.0.0.1:{other.port}/api/v1").call("GET", "/x", token="t", timeout=1, max_bytes=10_000)
        assert time.monotonic() - begun < 20


@pytest.mark.parametrize(("first", "piece", "pause"), ENDLESS[:4])
def test_a_receiver_that_never_finishes_its_head_is_given_up_at_the_deadline_and_asked_once(
    first: bytes, piece: bytes, pause: float
) -> None:
    with peer(first, piece, pause) as other:
        begun = time.monotonic()
        with pytest.raises((OSError, Exception)):
            Poster().post(f"http://127.0.0.1:{other.port}/in", b"{}", 1)
        assert time.monotonic() - begun < 20
        assert other.connections == 1


@pytest.mark.parametrize(("first", "piece", "pause"), ENDLESS[4:])
def test_a_receiver_whose_head_came_has_answered_whatever_its_body_does(
    first: bytes, piece: bytes, pause: float
) -> None:
    with peer(first, piece, pause) as other:
        begun = time.monotonic()
        assert Poster().post(f"http://127.0.0.1:{other.port}/in", b"{}", 1) == 200
        assert time.monotonic() - begun < 20


def test_a_receiver_that_hangs_on_a_kept_connection_gets_the_record_once() -> None:
    with peer(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as other:
        poster, url = Poster(), f"http://127.0.0.1:{other.port}/in"
        assert poster.post(url, b"1", 5) == 200
        other._first = b""  # from now on it takes and answers nothing
        with pytest.raises(TimeoutError):
            poster.post(url, b"2", 0.5)
        assert other.connections == 1
        poster.close()


def test_a_stopped_pipeline_waits_for_no_receiver() -> None:
    with peer(b"") as other:
        poster = Poster()
        threading.Timer(0.3, poster.stop).start()
        begun = time.monotonic()
        with pytest.raises((OSError, Exception)):
            poster.post(f"http://127.0.0.1:{other.port}/in", b"1", 30)
        assert time.monotonic() - begun < 20


def test_ipv6_is_spoken() -> None:
    with peer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", family=socket.AF_INET6) as other:
        assert Client(f"http://[::1]:{other.port}/api").call("GET", "/x", token="t").json() == {}
        poster = Poster()
        assert poster.post(f"http://[::1]:{other.port}/in", b"{}", 5) == 200
        poster.close()


@pytest.mark.parametrize("path", ["/a b", "/a\nb", "/é", "/\x00"])
def test_what_can_not_be_written_as_http_is_our_own_fault_and_never_sent(path: str) -> None:
    with peer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}") as other:
        client = Client(f"http://127.0.0.1:{other.port}/api")
        with pytest.raises(Unsendable) as refused:
            client.call("GET", path, token="t")
        assert refused.value.code == "request_unsendable"
        with pytest.raises(Unsendable):
            client.call("GET", "/x", token="t\r\nX: y")


@pytest.mark.parametrize("status", [301, 302, 303, 304, 307, 308])
def test_a_redirect_of_the_control_plane_is_not_followed(status: int) -> None:
    head = b"HTTP/1.1 %d Elsewhere\r\nLocation: /y\r\nContent-Length: 0\r\n\r\n" % status
    with peer(head) as other, pytest.raises(Refused) as refused:
        Client(f"http://127.0.0.1:{other.port}/api").call("GET", "/x", token="t")
    assert (refused.value.status, refused.value.code, other.connections) == (status, "redirected", 1)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5", 5.0), ("0", 0.0), ("99999999999", 60.0), ("3600000", 60.0), ("9" * 5000, 60.0), ("-1", None), ("1.5", None),
     ("²", None), ("١", None), ("", None), ("Wed, 21 Oct 2015 07:28:00 GMT", None), ("inf", None), ("nan", None)],
)  # fmt: skip
def test_no_answer_makes_the_agent_wait_longer_than_a_minute(text: str, seconds: float | None) -> None:
    assert Answer(503, {"retry-after": text}, b"").retry_after() == seconds


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b"\xff", b"1" * 10_000, b'{"code": [1], "detail": {"a": 1}}', b"", b"null"]
)
def test_an_error_with_any_body_is_an_error(body: bytes) -> None:
    head = b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n" % len(body)
    with peer(head + body) as other, pytest.raises(Refused) as error:
        Client(f"http://127.0.0.1:{other.port}/api").call("GET", "/x", token="t")
    assert (error.value.status, error.value.code) == (400, "")


@pytest.mark.parametrize("size", [b"-5", b"-1", b"f" * 60_000, b"1_0", b"x"])
def test_a_chunk_of_no_size_is_no_answer(size: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    with peer(head + size + b"\r\nabc") as other, pytest.raises(Unreachable):
        Client(f"http://127.0.0.1:{other.port}/api").call("GET", "/x", token="t", timeout=0.5)
