"""Which connections of this process are ended, seen at moments that the test chooses."""

from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from byteor.server.connections import Connections
from byteor.server.limits import Limits
from tests.flows.world import until

pytestmark = pytest.mark.alone


def _acknowledged(served: socket.socket) -> int:
    """Bytes that the client's kernel has acknowledged: `tcpi_bytes_acked`."""
    return int(struct.unpack_from("Q", served.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160), 120)[0])


class Readers:
    """Connections whose clients asked for something, and to whom much is to be sent."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.pairs: list[tuple[socket.socket, socket.socket]] = []
        self._taken: Counter[socket.socket] = Counter()

    def join(self) -> None:
        client = self._stack.enter_context(socket.socket())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(30)
        client.connect(self._listening.getsockname())
        client.sendall(b"please")
        served, _ = self._listening.accept()
        self._stack.enter_context(served)
        served.setblocking(False)
        self.pairs.append((client, served))
        self.answer()

    def answer(self) -> None:
        """Have something to be sent on every connection."""
        for _, served in self.pairs:
            with suppress(OSError):
                served.send(b"x" * 1024 * 1024)

    def read(self, most: int) -> None:
        """Each client reads so much, and acknowledges it."""
        for client, served in self.pairs:
            wanted = self._taken[client] + most
            while self._taken[client] < wanted:
                self._taken[client] += len(client.recv(min(4096, wanted - self._taken[client])))
            until(lambda served=served, client=client: _acknowledged(served) >= self._taken[client])  # type: ignore[misc]
        self.answer()

    def ended(self) -> list[bool]:
        """Which were ended, in the order in which they came."""
        return [self._is_ended(served) for _, served in self.pairs]

    def _is_ended(self, served: socket.socket) -> bool:
        try:
            served.send(b"")
            return served.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != 1
        except OSError:
            return True


@pytest.fixture
def readers() -> Iterator[Readers]:
    with ExitStack() as stack:
        yield Readers(stack)


LIMITS = Limits(unread_seconds=30, trickling=1, trickle_bytes_per_second=1024)


def watched(readers: Readers, count: int, *, read: int) -> Connections:
    """Connections after 45 s in which each of `count` clients read about `read` bytes every 15 s."""
    connections = Connections(LIMITS)
    for number in range(count):
        readers.join()
        connections.look(1000.0 + number)
    for moment in (1015.0, 1030.0, 1045.0):
        readers.read(read)
        connections.look(moment)
    return connections


def test_of_too_many_that_read_a_trickle_those_end_that_have_been_longest_at_it(readers: Readers) -> None:
    watched(readers, 3, read=6000)
    assert readers.ended() == [True, True, False]


def test_those_that_read_at_a_fair_pace_go_on_however_many(readers: Readers) -> None:
    watched(readers, 3, read=64 * 1024)
    assert readers.ended() == [False, False, False]
